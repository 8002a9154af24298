"""All monitors of a run as one: they read every step and every evaluation, and are saved together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trilemma.config.config import Config
from trilemma.monitors.accuracy_gap import AccuracyGapMonitor
from trilemma.monitors.decline import DeclineMonitor
from trilemma.monitors.divergence import DivergenceMonitor
from trilemma.monitors.gradient_cosine import GradientCosineMonitor
from trilemma.monitors.monitor import Alarm
from trilemma.monitors.overfitting import OverfittingMonitor
from trilemma.monitors.readings import Reading

# Steps of the fast means; an epoch where that is shorter.
WINDOW = 100


class Watch:
    """The monitors that the configuration asks for.

    The cosine is read for every method whose attack keeps its gradient; only for attacks of one step is its
    fall an alarm, since later steps of a longer attack correct the first.

    Args:
        config: of the run.
        steps_per_epoch: for the windows.
    """

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self.on = config.monitors
        self.follow(config)
        self.window = min(WINDOW, steps_per_epoch)
        self.divergence = DivergenceMonitor()
        self.cosine = GradientCosineMonitor(self.window)
        self.overfitting = OverfittingMonitor(
            self.window, settled_at=config.training.epochs * steps_per_epoch // 2
        )
        self.gap = AccuracyGapMonitor()
        self.decline = DeclineMonitor()

    def follow(self, config: Config) -> None:
        """Takes up what remedies have changed."""
        self.one_step = config.method.single_step and config.attack.steps == 1

    @property
    def horizon(self) -> int:
        """Steps for which checkpoints are kept, so that a remedy of late alarms can go back before their onset."""
        late = any("rollback" in rung for name, ladder in self.on.remedies.items() if name != "divergence"
                   for rung in ladder)  # fmt: skip
        return 4 * self.window if late else 0

    def read(self, reading: Reading, step: int) -> list[Alarm]:
        """The alarms of one step; after a divergence nothing else is worth reading."""
        if self.on.divergence and (diverged := self.divergence.read(reading, step)) is not None:
            return [diverged]
        if not self.on.overfitting:
            return []
        early = self.cosine.read(reading, step)
        found = self.overfitting.read(reading, step, self.one_step and self.cosine.fallen)
        return [*(early if self.one_step else []), *found]

    def evaluated(self, single_step: float | None, robust: float | None, step: int) -> list[Alarm]:
        """The alarms of one evaluation on held-out images: accuracy under FGSM, if known, and under PGD-10."""
        if robust is None or not self.on.overfitting:
            return []
        found = [] if single_step is None else self.gap.read(single_step, robust, step)
        level = self.overfitting.fast.get("delta_marginal")
        if level is not None and not self.one_step:  # what is lost in training by one step has another name
            found += self.decline.read(robust, level, step)
        return found

    def remedied(self, step: int) -> None:
        """A remedy was given at ``step`` without going back: three windows for it to work."""
        until = step + 3 * self.window
        for part in (self.cosine.once, self.overfitting.once, self.gap, self.decline):
            part.remedied(until)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in _PARTS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])


_PARTS = ("divergence", "cosine", "overfitting", "gap", "decline")
