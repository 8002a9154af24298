"""Tools of the lint: counted forward and backward passes, a short attack, and an exact sign test."""

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
    """Logits and gradients of a classifier; use it inside :func:`trilemma.classifier.contexts.inner_loop`.

    Args:
        clf: the classifier.
        image: ``[N, C, H, W]``; the first image is used to find out whether there are gradients.
        batch_size: largest number of images per forward pass.

    Attributes:
        oracle: the oracle, which counts the passes.
        connected: whether the logits have a gradient with respect to the image.
    """

    def __init__(self, clf: Classifier, image: Tensor, batch_size: int) -> None:
        self.oracle = Oracle(clf, batch_size)
        with torch.enable_grad():
            self.connected = bool(clf.logits(image[:1].detach().requires_grad_()).requires_grad)
        self.oracle.passes.add(forwards=1)

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[n, K]``, detached."""
        return self.oracle.logits(images)

    def is_correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """Whether each image is classified correctly, bool ``[n]``."""
        return ~is_wrong(self.oracle.logits(images), labels)

    def gradient(self, images: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Loss ``[n]``, logits ``[n, K]``, and the loss gradients; these are zero if the logits are detached."""
        if self.connected:
            return self.oracle.gradient(images, lambda logits: loss(logits, labels))
        logits = self.oracle.logits(images)
        return loss(logits, labels), logits, torch.zeros_like(images)


def max_abs(values: Tensor) -> Tensor:
    """The largest absolute value of each image, ``[N, ...]`` to ``[N]``."""
    return values.abs().flatten(1).amax(1)


@dataclass
class Ascent:
    """The result of :func:`ascend`.

    Attributes:
        broken: whether each image was broken, bool ``[n]``.
        first, last: the loss at the start and at the last iterate of each image, ``[n]``.
    """

    broken: Tensor
    first: Tensor
    last: Tensor


def ascend(
    probe: Probe,
    start: Tensor,
    clean: Tensor,
    labels: Tensor,
    threat: Threat,
    loss: Loss,
    steps: int,
    step_size: Callable[[int], float],
) -> Ascent:
    """Maximises ``loss`` by steps of steepest ascent within the ball; an image stops when it is broken.

    Args:
        start, clean: ``[n, C, H, W]``.
        step_size: from the step number (0, 1, ...) to the step size in pixel units.
    """
    index = torch.arange(len(clean), device=clean.device)
    result = Ascent(torch.zeros_like(labels, dtype=torch.bool), torch.zeros(0), torch.zeros(0))
    points = start
    for step in range(steps):
        values, logits, gradient = probe.gradient(points, labels[index], loss)
        if step == 0:
            result.first, result.last = values, values.clone()
        index, points, gradient = _record(result, index, points, gradient, values, logits, labels)
        if not len(index):
            return result
        # NaN gradients are another finding; here they count as zero.
        move = step_size(step) * threat.ascent(torch.nan_to_num(gradient, 0.0, 0.0, 0.0))
        points = threat.project(points + move, clean[index])
    logits = probe.logits(points)
    _record(result, index, points, points, loss(logits, labels[index]), logits, labels)
    return result


def _record(
    result: Ascent,
    index: Tensor,
    points: Tensor,
    gradient: Tensor,
    values: Tensor,
    logits: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Records losses and verdicts; returns ``index``, ``points`` and ``gradient`` of the images that are not broken."""
    result.last[index] = values
    wrong = is_wrong(logits, labels[index])
    result.broken[index] = wrong
    return index[~wrong], points[~wrong], gradient[~wrong]


# Significance level of the sign test.
SIGNIFICANCE = 0.01


def sign_test(more: int, fewer: int) -> float:
    """The probability of at least ``more`` heads in ``more + fewer`` tosses of a fair coin."""
    tosses = more + fewer
    outcomes = sum(comb(tosses, heads) for heads in range(more, tosses + 1))
    return outcomes / int(2**tosses)


def at_most(count: int, of: int, probability: float) -> float:
    """The probability of at most ``count`` successes in ``of`` independent trials of this ``probability``."""
    return sum(comb(of, k) * probability**k * (1 - probability) ** (of - k) for k in range(count + 1))


def clearly_more(more: int, fewer: int, at_least: int = 1, chance: float = SIGNIFICANCE) -> bool:
    """Whether ``more`` exceeds ``fewer`` by ``at_least`` images, and significantly at the level ``chance``."""
    return more - fewer >= at_least and sign_test(more, fewer) < chance


def is_frequent(count: int, of: int, share: float, at_least: int = 4) -> bool:
    """Whether ``count`` is at least ``share`` times ``of``, and at least ``at_least``."""
    return count >= max(share * of, at_least)
