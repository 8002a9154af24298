"""Held-out images that resist one step but not ten: the plain sign of catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trilemma.monitors.monitor import Alarm

# A small network collapses at an FGSM accuracy that no gap of LIMIT fits under: there, the ratio counts, if it lasts.
RATIO, LASTING, FLOOR = 0.5, 3, 0.05


class AccuracyGapMonitor:
    """Alarms when held-out images resist FGSM far better than PGD-10: by more than ``limit``, or lastingly by double.

    Over 186 public runs the largest gap was at least 0.348 where training had collapsed and at most 0.187
    elsewhere; the limit lies between, and only a gap of a healthy run ends the alarm. Lastingly by double: at three
    evaluations in a row PGD-10 accuracy is below half of FGSM accuracy, and the gap above 0.05.

    Args:
        limit: difference of two shares of the same images.
        over: gap at which the cause counts as gone.
    """

    def __init__(self, limit: float = 0.3, over: float = 0.187) -> None:
        self.limit = limit
        self.over = over
        self.doubled = 0  # evaluations in a row at which FGSM accuracy was the double
        self.healthy = 0  # step of the last evaluation within the limit
        self.present = False
        self.quiet_until = 0

    def read(self, single_step: float, robust: float, step: int) -> list[Alarm]:
        """Takes in one evaluation; an alarm is raised again once its cause was gone.

        Args:
            single_step, robust: accuracy under FGSM and under PGD-10.
        """
        gap = single_step - robust
        self.doubled = self.doubled + 1 if robust < RATIO * single_step and gap > FLOOR else 0
        wide = gap > self.limit or self.doubled >= LASTING
        if not (wide or self.doubled):
            self.healthy = step
        if wide and step < self.quiet_until:
            return []
        new = wide and not self.present
        self.present = wide or (self.present and (gap > self.over or self.doubled > 0))
        message = f"held-out accuracy {single_step:.2f} under FGSM, {robust:.2f} under PGD-10"
        return [Alarm("accuracy-gap", message, step, lag=step - self.healthy)] if new else []

    def remedied(self, until: int) -> None:
        """A remedy was given in place: silence until it can have worked."""
        self.present = False
        self.quiet_until = until

    def state_dict(self) -> dict[str, Any]:
        return {
            "doubled": self.doubled,
            "healthy": self.healthy,
            "present": self.present,
            "quiet_until": self.quiet_until,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.doubled, self.healthy = state["doubled"], state["healthy"]
        self.present, self.quiet_until = state["present"], state["quiet_until"]
