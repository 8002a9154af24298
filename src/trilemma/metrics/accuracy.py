"""Accuracy with a confidence interval, the accuracy of constant answers, and the confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The 97.5 % quantile of the standard normal distribution, for two-sided 95 % intervals.
Z_95 = 1.959963984540054


def wilson_interval(successes: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), which unlike the normal interval is valid near 0 and 1.

    Args:
        successes: number of successes among ``count``; or a sum of ``count`` values in [0, 1], for whose mean the
            interval is at least as wide as needed, as none varies more than an outcome of 0 or 1.
        count: number of images, at least 1.
        z: standard normal quantile; for 95 % by default.

    Returns:
        ``(lower, upper)``, both in [0, 1].

    Raises:
        ValueError: ``count`` below 1 or ``successes`` outside 0 to ``count``.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count} is not a share")
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # The bounds are exactly 0 with no success and 1 with successes only, in spite of rounding.
    lower = 0.0 if successes == 0 else max(0.0, centre - half)
    upper = 1.0 if successes == count else min(1.0, centre + half)
    return lower, upper


@dataclass(frozen=True)
class Share:
    """A fraction of ``count`` images with the bounds of its 95 % Wilson interval, all in [0, 1]."""

    value: float
    lower: float
    upper: float
    count: int


def share(verdicts: Tensor) -> Share:
    """The fraction of true entries of a bool tensor ``[N]``, N at least 1, with its interval."""
    successes, count = int(verdicts.sum()), len(verdicts)
    lower, upper = wilson_interval(successes, count)
    return Share(successes / count, lower, upper, count)


def chance(labels: Tensor, answers: int = 1) -> float:
    """The largest accuracy that the same answer for every image can have: the share of the most frequent class.

    Args:
        labels: int64 ``[N]``, N at least 1.
        answers: number of classes that each image may be answered with, as in top-5 accuracy.
    """
    counts = labels.bincount().sort(descending=True).values
    return int(counts[:answers].sum()) / len(labels)


def answered_classes(logits: Tensor) -> Tensor:
    """The class with the largest logit of each image, int64 ``[N]``; -1 if a logit is not finite."""
    return logits.argmax(1).where(torch.isfinite(logits).all(1), -1)


def confusion(answers: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Number of images by true class (rows) and answer (columns), int64 ``[K, K]``, without images that have no answer.

    Args:
        answers: int64 ``[N]``, as of :func:`answered_classes`; -1 for no answer.
        labels: int64 ``[N]``.
        num_classes: K.
    """
    answered = answers >= 0
    pairs = labels[answered] * num_classes + answers[answered]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def rank(logits: Tensor, labels: Tensor) -> Tensor:
    """The number of classes that precede the label by their logits, int64 ``[N]``; the first of equal ones precedes."""
    own = logits.gather(1, labels[:, None])
    first = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & first)).sum(1)
