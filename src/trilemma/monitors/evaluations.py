"""One evaluation on held-out images, as a training run or a log has it, and the two monitors that read it."""

from __future__ import annotations

from dataclasses import dataclass

from trilemma.monitors.accuracy_gap import AccuracyGapMonitor
from trilemma.monitors.decline import DeclineMonitor
from trilemma.monitors.monitor import CHANCE, Alarm


@dataclass(frozen=True)
class Evaluation:
    """Held-out accuracies, in [0, 1].

    Attributes:
        pgd10: under PGD-10, or the attack of several steps that a log has.
        fgsm: under FGSM on the same images; ``None`` if it was not run.
        images: number of images; ``None`` for so many that sampling errors do not matter.
        chance: accuracy of answering the largest class for every image, or an upper bound of it.
        chance_is_known: whether it is no bound.
        level: running mean of dE(x) in training, for the message; ``None`` if unknown.
    """

    pgd10: float
    fgsm: float | None = None
    images: int | None = None
    chance: float = CHANCE
    chance_is_known: bool = False
    level: float | None = None


def read_evaluation(
    gap: AccuracyGapMonitor, decline: DeclineMonitor, evaluation: Evaluation, step: int
) -> list[Alarm]:
    """Passes an evaluation to both monitors and returns their alarms.

    A collapse is reported once: its accuracies are no part of a slow decline.

    Args:
        step: training step of the evaluation, larger than at the last call.
    """
    images, chance = evaluation.images, evaluation.chance
    alarms = gap.read(evaluation.fgsm, evaluation.pgd10, step, images, chance, evaluation.chance_is_known)
    if gap.is_collapsed:
        decline.interrupt()
        return alarms
    return [*alarms, *decline.read(evaluation.pgd10, evaluation.level, step, images, chance)]
