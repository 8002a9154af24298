"""Whether a change of the images, such as another scale, clearly raises the accuracy: shared by two checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from trilemma.evaluation.lint.probe import Probe, clearly_more

# Number of misclassified and of correctly classified images that a change is tried on first.
FIRST = 16
# Net number of images that a change must gain, and the significance level of the gain.
AT_LEAST, CHANCE = 3, 1e-3


@dataclass(frozen=True)
class Change:
    """A change of the images.

    Attributes:
        finding: name of the finding if it raises the accuracy.
        text: the change, in words.
        apply: from images ``[n, C, H, W]`` to changed images.
        reach: what it must reach, one or more pairs of the factor by which the odds of a correct classification rise,
            and the accuracy as a share of the way from always answering the most frequent class to all correct. A
            network that has learnt little changes its answers for whole classes, some of them by luck.
    """

    finding: str
    text: str
    apply: Callable[[Tensor], Tensor]
    reach: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Gain:
    """The effect of a change: numbers of images that become correct (``gained``) and wrong (``lost``)."""

    change: Change
    gained: int
    lost: int


def best_gain(
    probe: Probe, changes: Iterable[Change], images: Tensor, labels: Tensor, correct: Tensor
) -> Gain | None:
    """The change that gains most among those that clearly raise the accuracy; ``None`` if there is none.

    Args:
        images: ``[N, C, H, W]``, as they are.
        correct: bool ``[N]``, the images that are classified correctly without a change.
    """
    best: Gain | None = None
    for change in changes:
        needed = _needed(change, labels, int(correct.sum()))
        if best is not None:
            needed = max(needed, best.gained - best.lost + 1)
        gain = _gain(probe, change, images, labels, correct, needed)
        if clearly_more(gain.gained, gain.lost, needed, chance=CHANCE):
            best = gain
    return best


def _needed(change: Change, labels: Tensor, correct: int) -> int:
    """The net number of images that a change has to gain."""
    count, most_frequent = len(labels), int(labels.bincount().max())

    def reached(factor: float, share: float) -> float:
        odds = factor * (correct + 0.5) / (count - correct + 0.5)
        return max(odds * (count + 1) / (1 + odds) - 0.5, most_frequent + share * (count - most_frequent))

    # Rounded down: few misclassified images can rise by a few only.
    return max(AT_LEAST, int(min(reached(*pair) for pair in change.reach)) - correct)


def _gain(probe: Probe, change: Change, images: Tensor, labels: Tensor, correct: Tensor, needed: int) -> Gain:
    """The effect of a change; zeros if the first few images make ``needed`` improbable."""

    def changed(index: Tensor) -> int:
        if not len(index):
            return 0
        return int((probe.is_correct(change.apply(images[index]), labels[index]) != correct[index]).sum())

    none = Gain(change, 0, 0)
    wrong, right = (~correct).nonzero().squeeze(1), correct.nonzero().squeeze(1)
    first_wrong, first_right = wrong[:FIRST], right[:FIRST]
    gained = changed(first_wrong)
    # One image more than seen, as so few may be unlucky.
    possible = len(wrong) * min(1.0, (gained + 1) / max(len(first_wrong), 1))
    if possible < needed:
        return none
    lost = changed(first_right)
    expected_loss = len(right) * lost / max(len(first_right), 1)
    if possible - expected_loss < needed:
        return none
    gained += changed(wrong[FIRST:])
    if gained - expected_loss < needed:
        return none
    return Gain(change, gained, lost + changed(right[FIRST:]))
