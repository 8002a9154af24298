"""Precision, recall, density and coverage: do samples lie among real images, and real images among samples.

A set is stood for by balls around its points that reach to the k-th nearest point of the same set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The papers' own: precision and recall, density and coverage.
NEIGHBOURS, NEIGHBOURS_DC = 3, 5


@dataclass(frozen=True)
class Manifold:
    """Four figures; all but ``density``, which may exceed 1, in [0, 1].

    Attributes:
        precision: share of samples in some ball of a real image (Kynkaanniemi et al. 2019, equation 2).
        recall: share of real images in some ball of a sample.
        density: balls of real images that a sample lies in, on average and over k (Naeem et al. 2020, equation 4).
        coverage: share of real images with a sample in their ball (equation 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(
    samples: Tensor, real: Tensor, k: int = NEIGHBOURS, k_dc: int = NEIGHBOURS_DC, chunk: int = 1000
) -> Manifold:
    """The four figures of features; they depend on both counts, which should be equal.

    Args:
        samples, real: ``[N, D]`` and ``[M, D]``, more than ``k_dc`` rows each.
        k: neighbours of precision and recall; ``k_dc`` of density and coverage.
        chunk: rows of the distance matrix at a time; changes nothing.

    Raises:
        ValueError: too few rows, or values that are not finite.
    """
    made, true = samples.detach().cpu().double(), real.detach().cpu().double()
    few = min(len(made), len(true))
    if few <= max(k, k_dc) or not bool(torch.isfinite(torch.cat([made, true])).all()):
        raise ValueError(
            f"manifold needs more than {max(k, k_dc)} rows of finite features in each set, [N, D]"
        )
    reach = radii(true, k, chunk)
    reach_dc = radii(true, k_dc, chunk)
    reach_made = radii(made, k, chunk)
    found = torch.zeros(len(made), dtype=torch.bool)  # some ball of a real image holds the sample
    balls, recalled, covered = 0, 0, 0
    for rows in torch.arange(len(true)).split(chunk):
        apart = squared_distances(true[rows], made)
        found |= (apart <= reach[rows, None]).any(0)
        recalled += int((apart <= reach_made).any(1).sum())
        inside = apart <= reach_dc[rows, None]
        balls += int(inside.sum())
        covered += int(inside.any(1).sum())
    return Manifold(
        float(found.double().mean()), recalled / len(true), balls / (k_dc * len(made)), covered / len(true)
    )


def radii(points: Tensor, k: int, chunk: int = 1000) -> Tensor:
    """The squared distance of each point ``[N, D]`` to the k-th nearest of the others: ``[N]``."""
    found = []
    for rows in torch.arange(len(points)).split(chunk):
        apart = squared_distances(points[rows], points)
        apart[torch.arange(len(rows)), rows] = -1.0  # itself comes first, whatever rounding says
        found.append(apart.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)


def squared_distances(one: Tensor, two: Tensor) -> Tensor:
    """``|a - b|^2`` of all pairs, float64 ``[n, m]``; expanded, so that no ``[n, m, D]`` is needed."""
    squares = one.square().sum(1, keepdim=True) + two.square().sum(1)
    return (squares - 2 * one @ two.T).clamp_min_(0.0)
