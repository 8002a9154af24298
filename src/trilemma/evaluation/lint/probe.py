"""What the lint measures a classifier with: passes, a short attack, and an exact sign test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.margins import is_wrong
from trilemma.classifier.classifier import Classifier
from trilemma.threat import Threat

# logits [n, K] and labels [n] to values [n]
Loss = Callable[[Tensor, Tensor], Tensor]


class Probe:
    """Logits and gradients inside :func:`trilemma.classifier.contexts.inner_loop`, at most ``batch_size`` images at
    a time.

    Attributes:
        oracle: counts the passes.
        connected: whether the logits have a gradient by the image at all.
    """

    def __init__(self, clf: Classifier, image: Tensor, batch_size: int) -> None:
        self.oracle = Oracle(clf, batch_size)
        with torch.enable_grad():
            self.connected = bool(clf.logits(image[:1].detach().requires_grad_()).requires_grad)
        self.oracle.passes.add(forwards=1)

    def logits(self, images: Tensor) -> Tensor:
        """``[n, K]``, without a graph."""
        return self.oracle.logits(images)

    def right(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images are classified as their label, bool ``[n]``."""
        return ~is_wrong(self.oracle.logits(images), labels)

    def gradient(self, images: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``[n]`` of ``loss``, logits ``[n, K]``, and the values' gradients; zeros where there is no graph."""
        if self.connected:
            return self.oracle.gradient(images, lambda logits: loss(logits, labels))
        logits = self.oracle.logits(images)
        return loss(logits, labels), logits, torch.zeros_like(images)


def largest(difference: Tensor) -> Tensor:
    """The largest absolute entry of each row, ``[N, ...]`` to ``[N]``."""
    return difference.abs().flatten(1).amax(1)


@dataclass
class Climb:
    """What became of each image.

    Attributes:
        broken: bool ``[n]``.
        first, last: the loss at the start and where the image stopped, ``[n]``.
    """

    broken: Tensor
    first: Tensor
    last: Tensor


def climb(
    probe: Probe,
    start: Tensor,
    clean: Tensor,
    labels: Tensor,
    threat: Threat,
    loss: Loss,
    steps: int,
    step_size: Callable[[int], float],
) -> Climb:
    """Steps of steepest ascent within the ball; an image stops when it is broken.

    Args:
        start, clean: ``[n, C, H, W]``.
        step_size: of step 0, 1, ..., pixel units.
    """
    index = torch.arange(len(clean), device=clean.device)
    result = Climb(torch.zeros_like(labels, dtype=torch.bool), torch.zeros(0), torch.zeros(0))
    points = start
    for step in range(steps):
        values, logits, gradient = probe.gradient(points, labels[index], loss)
        if step == 0:
            result.first, result.last = values, values.clone()
        index, points, gradient = _settle(result, index, points, gradient, values, logits, labels)
        if not len(index):
            return result
        # a gradient that is not a number is a finding of its own and moves nothing here
        move = step_size(step) * threat.ascent(torch.nan_to_num(gradient, 0.0, 0.0, 0.0))
        points = threat.project(points + move, clean[index])
    logits = probe.logits(points)
    _settle(result, index, points, points, loss(logits, labels[index]), logits, labels)
    return result


def _settle(
    result: Climb,
    index: Tensor,
    points: Tensor,
    gradient: Tensor,
    values: Tensor,
    logits: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes down the losses and who is broken; the others' rows remain."""
    result.last[index] = values
    wrong = is_wrong(logits, labels[index])
    result.broken[index] = wrong
    return index[~wrong], points[~wrong], gradient[~wrong]


CLEARLY = 0.01


def sign_test(more: int, fewer: int) -> float:
    """The chance of at least ``more`` heads in ``more + fewer`` throws of a fair coin."""
    throws = more + fewer
    ways = sum(comb(throws, heads) for heads in range(more, throws + 1))
    return ways / int(2**throws)


def clearly_more(more: int, fewer: int, at_least: int = 1, chance: float = CLEARLY) -> bool:
    """Whether ``more`` is above ``fewer`` beyond ``chance`` and by ``at_least`` images."""
    return more - fewer >= at_least and sign_test(more, fewer) < chance


def many(count: int, of: int, share: float, at_least: int = 4) -> bool:
    """Whether ``count`` is at least ``share`` of ``of``, and no mere handful."""
    return count >= max(share * of, at_least)
