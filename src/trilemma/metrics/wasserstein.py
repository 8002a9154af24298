"""The 1-Wasserstein distance between two sets of numbers (mean distance by which values are moved)."""

from __future__ import annotations

import torch
from torch import Tensor


def wasserstein_distance(first: Tensor, second: Tensor) -> float:
    """``integral |F(t) - G(t)| dt`` of the empirical distribution functions F and G of two sets.

    Args:
        first, second: ``[N]`` and ``[M]``, in the same unit, which is also the unit of the result.

    Raises:
        ValueError: an empty or non-finite set.
    """
    a, b = (values.detach().double().flatten().sort().values for values in (first, second))
    if not len(a) or not len(b) or not bool(torch.isfinite(torch.cat([a, b])).all()):
        raise ValueError("wasserstein_distance needs two non-empty sets of finite numbers")
    points = torch.cat([a, b]).sort().values
    below = points[:-1].contiguous()
    gap = torch.searchsorted(a, below, right=True) / len(a) - torch.searchsorted(b, below, right=True) / len(
        b
    )
    return float((gap.abs() * points.diff()).sum())
