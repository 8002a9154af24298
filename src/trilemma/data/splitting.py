"""Fixed stratified splits: functions of the labels (and a seed) alone, the same on every machine.

The order of the images of a class is that of a hash of their places, not of a library's random generator,
whose stream may change from one version to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.noise import uniform


def class_ranks(labels: Tensor, seed: int = 0) -> Tensor:
    """Place of each image in the shuffled order of its own class: int64 ``[N]``, 0 to n_class - 1."""
    lottery = uniform(torch.arange(len(labels)), seed, (1,)).flatten()
    order = torch.argsort(lottery, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks


def stratified_order(labels: Tensor, seed: int = 0) -> Tensor:
    """A permutation ``[N]`` whose every prefix has the classes' own proportions, up to rounding.

    With K classes the first K places hold one image of each.
    """
    ranks = class_ranks(labels, seed)
    share = ranks.double() / torch.bincount(labels).clamp(min=1)[labels]
    lottery = uniform(torch.arange(len(labels)), seed, (1,)).flatten()
    order = torch.argsort(lottery, stable=True)
    return order[torch.argsort(share[order], stable=True)]


def allocate(counts: list[int], total: int) -> list[int]:
    """How many of ``total`` images each class gives: proportional to ``counts``, largest remainders first.

    A class keeps at least one image for the other side, so the sum can stay below ``total`` when many classes
    have a single image.
    """
    whole = sum(counts)
    shares = [min(max(count - 1, 0), total * count // whole) for count in counts]
    for place in sorted(range(len(counts)), key=lambda place: -(total * counts[place] % whole)):
        if sum(shares) < total and shares[place] < counts[place] - 1:
            shares[place] += 1
    return shares


def stratified_split(labels: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cut a stratified part out of a data set.

    Args:
        labels: int64 ``[N]``.
        count: size of the part; a little less comes out where many classes have a single image.
        seed: another seed is another part.

    Returns:
        (rest, part): ascending indices, int64; together every image once.
    """
    shares = torch.tensor(allocate(torch.bincount(labels).tolist(), count))
    chosen = class_ranks(labels, seed) < shares[labels]
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()
