"""Alarm on robust overfitting as evaluations show it: the mean of held-out PGD-10 accuracies falls from its best."""

from __future__ import annotations

from statistics import mean

from trilemma.monitors.monitor import CHANCE, Alarm, EvaluationMonitor, above_chance, standard_error

# Runs of at least MANY evaluations are judged by the long window, which tells a smaller fall from noise.
LONG, SHORT, MANY = 10, 5, 50
# Fall of the mean that alarms, by the length of the window.
DROP = {LONG: 0.03, SHORT: 0.04}
# Standard errors of the difference of two means that the fall has to exceed.
ERRORS = 4.0
# An evaluation below this share of the mean may be the first of a collapse.
SUDDEN = 2 / 3


class DeclineMonitor(EvaluationMonitor):
    """Alarms if the mean PGD-10 accuracy of the last evaluations lies clearly below the best such mean.

    Both means are of ten evaluations and the fall is 0.03; in runs of fewer than 50 evaluations five and 0.04. With
    few held-out images the fall has to exceed four standard errors of the difference of two means whose readings are
    independent. The readings of a run share their images, which makes the true error smaller.

    The best mean has to be above chance. An evaluation far below the mean does not alarm: it may be the first of a
    collapse, which :mod:`trilemma.monitors.accuracy_gap` reports; if it is not, a later one alarms.

    Args:
        evaluations: number of evaluations of the whole run.
    """

    STATE = ("recent", "best_mean", "best_step", "best_level", "present", "quiet_until")

    def __init__(self, evaluations: int = MANY) -> None:
        super().__init__()
        self.window = LONG if evaluations >= MANY else SHORT
        # the last accuracies, at most a window
        self.recent: list[float] = []
        # highest mean so far, step of its last evaluation, and mean dE(x) there
        self.best_mean = 0.0
        self.best_step = 0
        self.best_level: float | None = None

    def read(
        self, pgd10: float, level: float | None, step: int, images: int | None = None, chance: float = CHANCE
    ) -> list[Alarm]:
        """Returns the alarm of one evaluation, as a list of none or one.

        Args:
            pgd10: held-out accuracy.
            level: running mean of dE(x) in training, for the message; ``None`` if unknown.
            step: training step of the evaluation.
            images: number of held-out images; by default so many that sampling errors do not matter.
            chance: accuracy of answering the largest class for every image, or an upper bound of it.
        """
        self.recent = [*self.recent, pgd10][-self.window :]
        if len(self.recent) < self.window:
            return []
        current = mean(self.recent)
        if current > self.best_mean:
            self.best_mean, self.best_step, self.best_level = current, step, level
        error = standard_error(self.best_mean, images and images * self.window, current)
        drop = max(DROP[self.window], ERRORS * error)
        message = f"mean held-out PGD accuracy {self.best_mean:.2f} -> {current:.2f}"
        if level is not None and self.best_level is not None:
            message += f", mean dE(x) {self.best_level:.2g} -> {level:.2g}"
        alarm = Alarm("robust-overfitting", message, step, lag=step - self.best_step)
        fall, learned = self.best_mean - current, self.best_mean > above_chance(chance, images)
        holds = learned and fall > drop and pgd10 >= SUDDEN * current
        return self._fire(alarm, holds=holds, persists=fall > drop / 2)

    def interrupt(self) -> None:
        """Starts a new window of evaluations."""
        self.recent = []
