"""Alarm on robust overfitting as evaluations show it: held-out PGD-10 accuracy and mean dE(x) both fall."""

from __future__ import annotations

from statistics import mean

from trilemma.monitors.monitor import Alarm, EvaluationMonitor

# Number of evaluations whose mean is compared with the best one: one evaluation of a few hundred images is too noisy.
WINDOW = 3


class DeclineMonitor(EvaluationMonitor):
    """Alarms if PGD-10 accuracy has fallen from its best and the mean dE(x) of training has fallen since then.

    Either alone is not enough. While a network learns, dE(x) drifts from 0 to its settled level and accuracy rises;
    and accuracy on a few held-out images fluctuates in healthy runs.

    Args:
        drop: fall in accuracy, mean over three evaluations against the best one; at half of it the condition is over.
        slide: fall of mean dE(x) since the best evaluation, logit units.
    """

    STATE = ("since", "best", "best_step", "best_level", "present", "quiet_until")

    def __init__(self, drop: float = 0.05, slide: float = 0.2) -> None:
        super().__init__()
        self.drop = drop
        self.slide = slide
        self.best = 0.0
        self.best_step = 0
        # mean dE(x) at the best evaluation
        self.best_level = 0.0
        # the last accuracies after the best one, at most WINDOW
        self.since: list[float] = []

    def read(self, pgd10: float, level: float, step: int) -> list[Alarm]:
        """Returns the alarm of one evaluation, as a list of none or one.

        Args:
            pgd10: held-out accuracy.
            level: running mean of dE(x) in training.
        """
        if pgd10 > self.best:
            self.best, self.best_step, self.best_level, self.since = pgd10, step, level, []
            self.present = False
            return []
        self.since = [*self.since, pgd10][-WINDOW:]
        recent = mean(self.since)
        fallen = len(self.since) == WINDOW and recent < self.best - self.drop
        message = (
            f"held-out PGD-10 accuracy {self.best:.2f} -> {recent:.2f}, "
            f"mean dE(x) {self.best_level:.2g} -> {level:.2g}"
        )
        alarm = Alarm("robust-overfitting", message, step, lag=step - self.best_step)
        holds = fallen and level < self.best_level - self.slide
        return self._fire(alarm, holds=holds, persists=recent < self.best - self.drop / 2)
