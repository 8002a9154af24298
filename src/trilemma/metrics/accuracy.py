"""Accuracy, and how sure a finite number of images makes us of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

# The 97.5 % point of the standard normal distribution: two-sided 95 %.
Z_95 = 1.959963984540054


def wilson_interval(successes: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927); unlike the plain one it is right near 0 and 1.

    Args:
        successes: how many of ``count``.
        count: number of images, at least 1.
        z: standard-normal quantile; 95 % by default.

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
    # The ends are exactly 0 and 1 where all or none succeed; rounding must not move them.
    lower = 0.0 if successes == 0 else max(0.0, centre - half)
    upper = 1.0 if successes == count else min(1.0, centre + half)
    return lower, upper


@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % Wilson interval, all in [0, 1]."""

    value: float
    lower: float
    upper: float
    count: int


def share(verdicts: Tensor) -> Share:
    """The share of true entries of a bool tensor ``[N]``, N at least 1."""
    successes, count = int(verdicts.sum()), len(verdicts)
    lower, upper = wilson_interval(successes, count)
    return Share(successes / count, lower, upper, count)
