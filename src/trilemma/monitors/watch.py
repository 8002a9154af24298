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
from trilemma.monitors.remedies import late_rollbacks

# Steps of the fast running means; an epoch if that is shorter.
WINDOW = 100
# Windows, or epochs, that a remedy has to take effect.
REST = 3


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
        self.steps_per_epoch = steps_per_epoch
        self.steps_per_evaluation = config.training.evaluate_every * steps_per_epoch
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
        return 4 * self.window if late_rollbacks(self.settings) else 0

    @property
    def healthy_step(self) -> int:
        """Step of the last evaluation that is no sign of overfitting; 0 before the first.

        It is healthy, or has no gap in a run whose PGD-10 accuracy was never above chance.
        """
        return self.gap.healthy

    @property
    def onsets(self) -> set[int]:
        """Steps of the evaluations that an alarm of a later evaluation may name as its onset; 0 for none."""
        return {self.gap.healthy, self.decline.best_step}

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
        evaluation = Evaluation(pgd10, fgsm, images, chance, chance_is_known=True, level=level)
        return read_evaluation(self.gap, self.decline, evaluation, step)

    @property
    def healthy(self) -> bool:
        """Verdict on the last evaluation (:attr:`trilemma.monitors.accuracy_gap.AccuracyGapMonitor.is_healthy`)."""
        return self.gap.is_healthy

    def give_time(self, step: int, restored: bool = False, accuracy: float | None = None) -> None:
        """Suppresses overfitting alarms after the remedies of an alarm, until they could take effect.

        An alarm of training steps has to wait for three windows, one of evaluations for three epochs and at least one
        evaluation, because a network that has collapsed recovers slowly. Counts begin anew, and the best evaluations
        remain the reference.

        Args:
            step: the current step.
            restored: whether a rollback has restored healthy weights, and with them these monitors with their counts
                and best evaluations. Then only alarms of evaluations have to wait, for three epochs.
            accuracy: PGD-10 accuracy of the last evaluation before the remedies; a gap alarms again only if this
                accuracy has not risen clearly.
        """
        self.gap.remedied_at = accuracy
        epochs = step + REST * self.steps_per_epoch
        if restored:
            for monitor in (self.gap, self.decline):
                monitor.quiet_until = max(monitor.quiet_until, epochs)
            return
        for once in (self.cosine.once, self.overfitting.once):
            once.silence(step + REST * self.window)
        next_evaluation = (step // self.steps_per_evaluation + 1) * self.steps_per_evaluation
        for monitor in (self.gap, self.decline):
            monitor.silence(max(epochs, next_evaluation + 1))
