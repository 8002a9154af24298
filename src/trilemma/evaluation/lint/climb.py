"""A short gradient attack that remembers where its loss began and ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.attacks.margins import is_wrong
from trilemma.evaluation.lint.probe import Loss, Probe
from trilemma.threat import Threat


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
