"""Alarm on a wide gap between held-out FGSM and PGD-10 accuracy: the direct sign of catastrophic overfitting."""

from __future__ import annotations

from trilemma.monitors.monitor import Alarm, EvaluationMonitor

# A small network can collapse while its FGSM accuracy stays below ``limit``, so the gap cannot exceed it. Therefore a
# PGD-10 accuracy below RATIO times FGSM accuracy, with a gap above FLOOR, alarms too after PATIENCE evaluations.
RATIO, PATIENCE, FLOOR = 0.5, 3, 0.05


class AccuracyGapMonitor(EvaluationMonitor):
    """Alarms if held-out FGSM accuracy exceeds PGD-10 accuracy by ``limit``, or repeatedly by a factor of two.

    Over 186 public runs the largest gap was at least 0.348 where training had collapsed and at most 0.187
    elsewhere; the default limit lies between, and only a gap of a healthy run ends the alarm. Repeatedly by a factor
    of two: at three evaluations in a row PGD-10 accuracy is below half of FGSM accuracy, and the gap above 0.05.

    Args:
        limit: gap in accuracy that alarms.
        healthy_gap: gap in accuracy at or below which the condition is over.
    """

    STATE = ("doubled", "healthy", "present", "quiet_until")

    def __init__(self, limit: float = 0.3, healthy_gap: float = 0.187) -> None:
        super().__init__()
        self.limit = limit
        self.healthy_gap = healthy_gap
        # number of evaluations in a row at which FGSM accuracy was more than twice PGD-10 accuracy
        self.doubled = 0
        # step of the last evaluation that met neither condition
        self.healthy = 0

    def read(self, fgsm: float, pgd10: float, step: int) -> list[Alarm]:
        """Returns the alarm of one evaluation, as a list of none or one.

        Args:
            fgsm, pgd10: held-out accuracies on the same images.
        """
        gap = fgsm - pgd10
        self.doubled = self.doubled + 1 if pgd10 < RATIO * fgsm and gap > FLOOR else 0
        wide = gap > self.limit or self.doubled >= PATIENCE
        if not (wide or self.doubled):
            self.healthy = step
        message = f"held-out accuracy {fgsm:.2f} under FGSM, {pgd10:.2f} under PGD-10"
        alarm = Alarm("accuracy-gap", message, step, lag=step - self.healthy)
        return self._fire(alarm, holds=wide, persists=gap > self.healthy_gap or self.doubled > 0)
