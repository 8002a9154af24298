"""Fixed stratified splits, which depend only on the labels and a seed and are the same on every machine.

Images are shuffled by a hash of their index, not by a library's random generator, whose stream may change between
versions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.noise import uniform


def class_ranks(labels: Tensor, seed: int = 0) -> Tensor:
    """The position of each image in the shuffled order of its class: int64 ``[N]``, 0 to n_class - 1."""
    random_keys = uniform(torch.arange(len(labels)), seed, (1,)).flatten()
    order = torch.argsort(random_keys, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks


def stratified_order(labels: Tensor, seed: int = 0) -> Tensor:
    """A permutation ``[N]`` of which every prefix has the class proportions of the whole, up to rounding.

    With K classes the first K images are one of each class.
    """
    ranks = class_ranks(labels, seed)
    share = ranks.double() / torch.bincount(labels).clamp(min=1)[labels]
    random_keys = uniform(torch.arange(len(labels)), seed, (1,)).flatten()
    order = torch.argsort(random_keys, stable=True)
    return order[torch.argsort(share[order], stable=True)]


def allocate(counts: list[int], total: int) -> list[int]:
    """The number of images that each class contributes to ``total``: proportional, by the largest-remainder method.

    At least one image of every class is left out, so that the sum is below ``total`` if many classes have a single
    image.
    """
    whole = sum(counts)
    shares = [min(max(count - 1, 0), total * count // whole) for count in counts]
    for label in sorted(range(len(counts)), key=lambda label: -(total * counts[label] % whole)):
        if sum(shares) < total and shares[label] < counts[label] - 1:
            shares[label] += 1
    return shares


def stratified_split(labels: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Splits a data set into a stratified part and the rest.

    Args:
        labels: int64 ``[N]``.
        count: size of the part; it is a little smaller if many classes have a single image.
        seed: seed of the choice.

    Returns:
        (rest, part): ascending indices, int64; every image is in exactly one of them.
    """
    shares = torch.tensor(allocate(torch.bincount(labels).tolist(), count))
    chosen = class_ranks(labels, seed) < shares[labels]
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()
