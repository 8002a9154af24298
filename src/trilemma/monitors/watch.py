"""All monitors of a run as one object: reads every step and every evaluation, and is saved as a whole."""

from __future__ import annotations

from trilemma.config.config import Config
from trilemma.monitors.accuracy_gap import AccuracyGapMonitor
from trilemma.monitors.decline import DeclineMonitor
from trilemma.monitors.divergence import DivergenceMonitor
from trilemma.monitors.evaluations import Evaluation, read_evaluation
from trilemma.monitors.gradient_cosine import GradientCosineMonitor
from trilemma.monitors.monitor import CHANCE, Alarm, Stateful
from trilemma.monitors.overfitting import OverfittingMonitor
from trilemma.monitors.readings import Reading

# Steps of the fast running means; an epoch if that is shorter.
WINDOW = 100


class Watch(Stateful):
    """The monitors that the configuration turns on.

    The gradient cosine is tracked for every method whose attack keeps its gradient. Its fall is an alarm
    only for single-step attacks, since later steps of a longer attack correct the first.

    Args:
        config: of the run.
        steps_per_epoch: limits the windows of the running means.
    """

    STATE = ("divergence", "cosine", "overfitting", "gap", "decline")

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self.settings = config.monitors
        self.update_config(config)
        self.window = min(WINDOW, steps_per_epoch)
        self.divergence = DivergenceMonitor()
        self.cosine = GradientCosineMonitor(self.window)
        self.overfitting = OverfittingMonitor(
            self.window, settled_at=config.training.epochs * steps_per_epoch // 2
        )
        self.gap = AccuracyGapMonitor()
        training = config.training
        self.decline = DeclineMonitor(training.epochs // training.evaluate_every)

    def update_config(self, config: Config) -> None:
        """Applies a configuration that remedies have changed."""
        self.single_step = config.method.single_step and config.attack.steps == 1

    @property
    def horizon(self) -> int:
        """Number of steps for which checkpoints are kept, so that a rollback can reach the onset of a late alarm."""
        late_rollback = any(
            "rollback" in rung
            for name, ladder in self.settings.remedies.items()
            if name != "divergence"
            for rung in ladder
        )
        return 4 * self.window if late_rollback else 0

    def read(self, reading: Reading, step: int) -> list[Alarm]:
        """Returns the alarms of one step; after a divergence the other monitors are skipped."""
        if self.settings.divergence and (diverged := self.divergence.read(reading, step)) is not None:
            return [diverged]
        if not self.settings.overfitting:
            return []
        early_alarms = self.cosine.read(reading, step)
        alarms = self.overfitting.read(reading, step, self.single_step and self.cosine.fallen)
        return [*(early_alarms if self.single_step else []), *alarms]

    def read_evaluation(
        self,
        fgsm: float | None,
        pgd10: float | None,
        step: int,
        images: int | None = None,
        chance: float = CHANCE,
    ) -> list[Alarm]:
        """Returns the alarms of one evaluation on held-out images.

        Args:
            fgsm, pgd10: accuracy under each attack, ``None`` if it was not run.
            step: training step of the evaluation, larger than at the last call.
            images: number of held-out images; by default so many that sampling errors do not matter.
            chance: accuracy of answering the largest class for every image.
        """
        level = self.overfitting.fast.get("delta_marginal")
        # A method without adversarial images has no dE(x), and no robustness to lose.
        if pgd10 is None or level is None or not self.settings.overfitting:
            return []
        evaluation = Evaluation(pgd10, fgsm, images, chance, level)
        return read_evaluation(self.gap, self.decline, evaluation, step)

    @property
    def healthy(self) -> bool:
        """Verdict on the last evaluation (:attr:`trilemma.monitors.accuracy_gap.AccuracyGapMonitor.is_healthy`)."""
        return self.gap.is_healthy

    def silence_after_remedy(self, step: int) -> None:
        """Suppresses overfitting alarms for three windows, so that a remedy without rollback can take effect."""
        for part in (self.cosine.once, self.overfitting.once, self.gap, self.decline):
            part.silence(step + 3 * self.window)
