"""Precision, recall, density and coverage: the overlap of samples and real images in feature space.

The manifold of a set is estimated by balls around its points, with the distance to the k-th nearest point of the same
set as radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# k in the papers: for precision and recall, and for density and coverage.
NEIGHBOURS, NEIGHBOURS_DC = 3, 5


@dataclass(frozen=True)
class Manifold:
    """The four metrics, in [0, 1] except ``density``, which can exceed 1.

    Attributes:
        precision: fraction of samples in at least one ball of a real image (Kynkaanniemi et al. 2019, equation 2).
        recall: fraction of real images in at least one ball of a sample.
        density: mean number of balls of real images around a sample, divided by k (Naeem et al. 2020, equation 4).
        coverage: fraction of real images with at least one sample in their ball (equation 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(
    samples: Tensor, real: Tensor, k: int = NEIGHBOURS, k_dc: int = NEIGHBOURS_DC, chunk: int = 1000
) -> Manifold:
    """Precision, recall, density and coverage of features; the values depend on N and M, which should be equal.

    Args:
        samples, real: ``[N, D]`` and ``[M, D]``, more than ``max(k, k_dc)`` feature vectors each.
        k: number of neighbours for precision and recall.
        k_dc: number of neighbours for density and coverage.
        chunk: number of points whose distances are computed at once; does not change the result.

    Raises:
        ValueError: too few feature vectors, or values that are not finite.
    """
    generated, true = samples.detach().cpu().double(), real.detach().cpu().double()
    smaller = min(len(generated), len(true))
    if smaller <= max(k, k_dc) or not bool(torch.isfinite(torch.cat([generated, true])).all()):
        raise ValueError(
            f"manifold needs more than {max(k, k_dc)} finite feature vectors in each set, [N, D]"
        )
    radius = radii(true, k, chunk)
    radius_dc = radii(true, k_dc, chunk)
    radius_generated = radii(generated, k, chunk)
    # Whether each sample is in at least one ball of a real image.
    precise = torch.zeros(len(generated), dtype=torch.bool)
    balls, recalled, covered = 0, 0, 0
    for index in torch.arange(len(true)).split(chunk):
        distances = squared_distances(true[index], generated)
        precise |= (distances <= radius[index, None]).any(0)
        recalled += int((distances <= radius_generated).any(1).sum())
        inside = distances <= radius_dc[index, None]
        balls += int(inside.sum())
        covered += int(inside.any(1).sum())
    return Manifold(
        float(precise.double().mean()),
        recalled / len(true),
        balls / (k_dc * len(generated)),
        covered / len(true),
    )


def radii(points: Tensor, k: int, chunk: int = 1000) -> Tensor:
    """The squared distance of each point ``[N, D]`` to its k-th nearest other point: ``[N]``."""
    squared_radii = []
    for index in torch.arange(len(points)).split(chunk):
        distances = squared_distances(points[index], points)
        # The point itself must be first in the order, also when its computed distance is not exactly 0.
        distances[torch.arange(len(index)), index] = -1.0
        squared_radii.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(squared_radii)


def squared_distances(one: Tensor, two: Tensor) -> Tensor:
    """``|a - b|^2`` of all pairs, float64 ``[n, m]``; computed by expansion, without a tensor ``[n, m, D]``."""
    squares = one.square().sum(1, keepdim=True) + two.square().sum(1)
    return (squares - 2 * one @ two.T).clamp_min_(0.0)
