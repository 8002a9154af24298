"""Alarm on catastrophic overfitting as evaluations show it: an FGSM-PGD gap, or PGD-10 accuracy lost altogether."""

from __future__ import annotations

from trilemma.monitors.monitor import (
    CHANCE,
    Alarm,
    EvaluationMonitor,
    above_chance,
    at_chance,
    standard_error,
)

# Largest gap of healthy public runs, and standard errors that a gap may lie above it by chance. For 512 images or more
# they give less than the limit.
HEALTHY_GAP, GAP_ERRORS = 0.187, 3.5
# Below COLLAPSED times its best, PGD-10 accuracy is lost; from RECOVERED times its best on it is no longer.
COLLAPSED, RECOVERED = 1 / 3, 1 / 2
# Share of its best that PGD-10 accuracy has at a healthy evaluation.
HEALTHY = 0.8
# Share of its best that PGD-10 accuracy has as long as a remedy helps.
HELPED = 0.75
# Evaluations in a row at which PGD-10 accuracy has to be lost.
PATIENCE = 2
# Standard errors by which PGD-10 accuracy has to lie below its best.
ERRORS = 3.0


class AccuracyGapMonitor(EvaluationMonitor):
    """Alarms if held-out FGSM accuracy exceeds PGD-10 accuracy by ``limit``, or PGD-10 accuracy is lost.

    Lost: below a third of the run's own best at two evaluations in a row; or below half of it while FGSM accuracy is
    at chance, because a network that answers one class for every image keeps an accuracy of chance. It counts only in
    a run whose best was above chance: a network that starts to learn may cross chance in both directions. Few images
    widen both conditions by their standard errors.

    The alarm is over when the gap is at most 0.187 and PGD-10 accuracy at least half of its best.

    Args:
        limit: gap in accuracy that alarms.

    Attributes:
        is_healthy: verdict on the evaluation read last: PGD-10 accuracy is above chance and at least 0.8 of its best,
            the gap is no alarm, and FGSM accuracy is above chance and at least half of its best.
        is_collapsed: whether the alarm's condition holds or may hold: it is not over, or PGD-10 accuracy is lost at
            this one evaluation.
    """

    STATE = (
        "best",
        "best_fgsm",
        "lost",
        "healthy",
        "is_healthy",
        "present",
        "quiet_until",
        "last",
        "remedied_at",
    )

    def __init__(self, limit: float = 0.25) -> None:
        super().__init__()
        self.limit = limit
        # highest accuracies so far
        self.best = self.best_fgsm = 0.0
        # number of evaluations in a row at which PGD-10 accuracy was lost
        self.lost = 0
        # step of the last evaluation that was healthy, or had no gap before PGD-10 accuracy was ever above chance
        self.healthy = 0
        self.is_healthy = False
        # PGD-10 accuracy of the last evaluation, and the one that the last remedy was carried out for
        self.last: float | None = None
        self.remedied_at: float | None = None

    @property
    def is_collapsed(self) -> bool:
        return self.present or self.lost > 0

    def read(
        self,
        fgsm: float | None,
        pgd10: float,
        step: int,
        images: int | None = None,
        chance: float = CHANCE,
        chance_is_known: bool = False,
    ) -> list[Alarm]:
        """Returns the alarm of one evaluation, as a list of none or one.

        Args:
            fgsm, pgd10: held-out accuracies on the same images; ``fgsm`` is ``None`` if it was not measured.
            step: training step of the evaluation, larger than at the last call.
            images: number of held-out images; by default so many that sampling errors do not matter.
            chance: accuracy of answering the largest class for every image, or an upper bound of it.
            chance_is_known: whether it is no bound; otherwise FGSM accuracy is never taken to be at chance.
        """
        before, gap = self.best, 0.0 if fgsm is None else fgsm - pgd10
        self.best, self.best_fgsm = max(before, pgd10), max(self.best_fgsm, fgsm or 0.0)
        limit = max(self.limit, HEALTHY_GAP + GAP_ERRORS * standard_error(HEALTHY_GAP, images))
        threshold = above_chance(chance, images)
        dead = fgsm is not None and chance_is_known and at_chance(fgsm, chance, images)
        error = standard_error(self.best, images, pgd10)
        has_fallen = self.best > threshold and self.best - pgd10 > ERRORS * error
        is_lost = has_fallen and (pgd10 < COLLAPSED * self.best or (dead and pgd10 < RECOVERED * self.best))
        self.lost = self.lost + 1 if is_lost else 0
        weak = fgsm is not None and fgsm < self.best_fgsm / 2
        self.is_healthy = (
            pgd10 > threshold and pgd10 >= HEALTHY * self.best and gap <= limit and not (dead or weak)
        )
        # A run that has not learned yet can only be ill by its gap.
        learning = self.best <= threshold and gap <= limit
        if self.is_healthy or learning:
            self.healthy = step
        message = (
            f"held-out PGD accuracy {self.best:.2f} -> {pgd10:.2f}"
            if fgsm is None
            else f"held-out accuracy {fgsm:.2f} under FGSM, {pgd10:.2f} under PGD, whose best was {self.best:.2f}"
        )
        alarm = Alarm("accuracy-gap", message, step, lag=step - self.healthy)
        holds = (gap > limit and not self._has_helped(pgd10, images)) or self.lost >= PATIENCE
        self.last = pgd10
        return self._fire(
            alarm,
            holds=holds,
            persists=gap > HEALTHY_GAP or (has_fallen and pgd10 < RECOVERED * self.best),
        )

    def interrupt(self) -> None:
        """Starts a new count of evaluations at which PGD-10 accuracy is lost."""
        self.lost = 0

    def _has_helped(self, pgd10: float, images: int | None) -> bool:
        """Whether PGD-10 accuracy is clearly higher than before the last remedy, and near its best.

        A gap that remains beside it is no reason for the next remedy.
        """
        if self.remedied_at is None or pgd10 < HELPED * self.best:
            return False
        return pgd10 - self.remedied_at > ERRORS * standard_error(pgd10, images, self.remedied_at)
