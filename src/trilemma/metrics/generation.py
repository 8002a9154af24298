"""What generated images are worth, beside their starts: named by another network, near to real images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.metrics.accuracy import share


def nearest_distance(images: Tensor, reference: Tensor, chunk: int = 2000) -> Tensor:
    """L2 pixel distance from each image to the nearest of ``reference``.

    Args:
        images: float ``[N, C, H, W]`` in [0, 1].
        reference: float in [0, 1] or uint8, ``[M, C, H, W]``, M at least 1; read ``chunk`` at a time.
        chunk: reference images per block.

    Returns:
        ``[N]``, pixel units of images in [0, 1].
    """
    flat = images.flatten(1).double()
    square = flat.square().sum(1, keepdim=True)
    best = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
    for part in reference.split(chunk):
        other = part.to(images.device).flatten(1).double()
        other = other / 255 if part.dtype == torch.uint8 else other
        # In float64 the expansion |a - b|^2 = |a|^2 + |b|^2 - 2ab keeps 7 digits and needs no [N, M, D] block.
        gaps = square + other.square().sum(1) - 2 * flat @ other.T
        best = torch.minimum(best, gaps.amin(1))
    return best.clamp_min(0.0).sqrt().float()


@torch.no_grad()
def named(clf: Classifier, images: Tensor, labels: Tensor, batch_size: int = 250) -> Tensor:
    """Whether ``clf`` in eval mode names each image as its class: bool ``[N]`` on the CPU."""
    with inner_loop(clf, "eval"):
        says = torch.cat([clf(part.to(clf.device)).argmax(1) for part in images.split(batch_size)])
    return says.cpu() == labels.cpu()


def named_share(clf: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images that an independent classifier names as the class that was asked for."""
    return share(named(clf, images, labels)).value


def image_figures(
    images: Tensor, labels: Tensor, reference: Tensor | None = None, namer: Classifier | None = None
) -> dict[str, Any]:
    """The figures of one set of images; those that cannot be had are ``None``.

    Returns:
        ``count``, ``named`` (share, in [0, 1]) with its 95 % interval ``named_lower`` and ``named_upper``,
        ``distance`` (mean L2 distance to the nearest reference image) and ``distance_median``.
    """
    verdict = None if namer is None else share(named(namer, images, labels))
    distance = None if reference is None else nearest_distance(images, reference)
    return {
        "count": len(images),
        "named": None if verdict is None else verdict.value,
        "named_lower": None if verdict is None else verdict.lower,
        "named_upper": None if verdict is None else verdict.upper,
        "distance": None if distance is None else float(distance.mean()),
        "distance_median": None if distance is None else float(distance.median()),
    }


def compare_samples(
    starts: Tensor,
    samples: Tensor,
    labels: Tensor,
    *,
    reference: Tensor | None = None,
    namer: Classifier | None = None,
    real: tuple[Tensor, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """A sample is judged beside its own start and beside real images, or not at all.

    A class-informed start is already named as its class before any step, and a network that never saw
    noise may name noise: only start, sample and real images together, share and distance, tell something.

    Args:
        starts, samples: ``[N, C, H, W]`` in [0, 1], the same rows.
        labels: int64 ``[N]``, the class asked for.
        reference: training images for the nearest distance, float or uint8.
        namer: a classifier trained independently of the one that generated.
        real: images that were not trained on, with their labels.

    Returns:
        :func:`image_figures` of ``start``, ``sample`` and, if given, ``real``.
    """
    sets = {"start": (starts, labels), "sample": (samples, labels)} | ({} if real is None else {"real": real})
    return {name: image_figures(*both, reference, namer) for name, both in sets.items()}
