"""Held-out robustness that is lost while dE(x) slides: robust overfitting, as evaluations see it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from trilemma.monitors.monitor import Alarm

# Evaluations whose mean is compared with the best one: a single one of a few hundred images is too rough.
LASTING = 3


class DeclineMonitor:
    """Alarms when PGD-10 accuracy has fallen from its best and the mean dE(x) of training has slid meanwhile.

    Neither is enough alone. While a network learns, dE(x) grows from 0 to the level that belongs to it, and accuracy
    rises; and accuracy on a few held-out images goes up and down without anything being wrong.

    Args:
        drop: fall of the mean over three evaluations below the best one, as a share of the images; the cause counts as
            gone at half of it.
        slide: fall of mean dE(x) since the best evaluation, logit units.
    """

    def __init__(self, drop: float = 0.05, slide: float = 0.2) -> None:
        self.drop = drop
        self.slide = slide
        self.best = 0.0
        self.best_step = 0
        self.best_level = 0.0  # mean dE(x) there
        self.since: list[float] = []  # the last accuracies after the best one
        self.present = False
        self.quiet_until = 0

    def read(self, robust: float, level: float, step: int) -> list[Alarm]:
        """Takes in one evaluation; an alarm is raised again once its cause was gone.

        Args:
            robust: accuracy under PGD-10.
            level: running mean of dE(x) in training.
        """
        if robust > self.best:
            self.best, self.best_step, self.best_level, self.since = robust, step, level, []
            self.present = False
            return []
        self.since = [*self.since, robust][-LASTING:]
        usual = mean(self.since)
        lost = len(self.since) == LASTING and usual < self.best - self.drop
        ill = lost and level < self.best_level - self.slide
        if ill and step < self.quiet_until:
            return []
        new = ill and not self.present
        self.present = ill or (self.present and usual < self.best - self.drop / 2)
        message = (
            f"held-out PGD-10 accuracy {self.best:.2f} -> {usual:.2f}, "
            f"mean dE(x) {self.best_level:.2g} -> {level:.2g}"
        )
        return [Alarm("robust-overfitting", message, step, lag=step - self.best_step)] if new else []

    def remedied(self, until: int) -> None:
        """A remedy was given in place: silence until it can have worked."""
        self.present = False
        self.quiet_until = until

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_step", "best_level", "present", "quiet_until")
        return {"since": list(self.since), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.since = list(state["since"])
