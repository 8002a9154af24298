"""Metrics of generated images: classification by an independent network, and distance to real images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.metrics.accuracy import share


def nearest_distance(images: Tensor, reference: Tensor, chunk: int = 2000) -> Tensor:
    """The L2 pixel distance of each image to the nearest reference image.

    Args:
        images: float ``[N, C, H, W]`` in [0, 1].
        reference: ``[M, C, H, W]``, float in [0, 1] or uint8, M at least 1.
        chunk: number of reference images that are processed at once.

    Returns:
        float32 ``[N]``, pixel units of images in [0, 1].
    """
    return _nearest(images, reference, chunk)[0].clamp_min(0.0).sqrt().float()


def nearest_images(images: Tensor, reference: Tensor, chunk: int = 2000) -> Tensor:
    """The position of the nearest reference image of each image, int64 ``[N]``; arguments as above."""
    return _nearest(images, reference, chunk)[1].to(reference.device)


def _nearest(images: Tensor, reference: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """The squared distance of each image to the nearest reference image, float64, and the position of that image."""
    flat = images.flatten(1).double()
    square = flat.square().sum(1, keepdim=True)
    best = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
    place = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for number, part in enumerate(reference.split(chunk)):
        other = part.to(images.device).flatten(1).double()
        other = other / 255 if part.dtype == torch.uint8 else other
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab needs no [N, M, D] tensor, and in float64 it is accurate to 7 digits.
        gaps = square + other.square().sum(1) - 2 * flat @ other.T
        nearest, index = gaps.min(1)
        place = torch.where(nearest < best, number * chunk + index, place)
        best = torch.minimum(best, nearest)
    return best, place


# Distances below this one are rounding: the images are the same.
COPY = 1e-4
# A sample nearer to a training image than this share of real test images is counted as a near copy.
NEAREST_REAL = 0.05


def memorisation(distances: Tensor, of_real: Tensor) -> dict[str, float | None]:
    """Whether samples are nearer to training images than real images are that were not used in training.

    Args:
        distances: distances of samples to their nearest training images (:func:`nearest_distance`), ``[N]``.
        of_real: the same of real test images, ``[M]``.

    Returns:
        ``distance`` (mean, pixel units), ``distance_ratio`` (divided by the mean of real images; far below 1 means
        memorised training images, far above 1 images unlike the data; ``None`` if the real images are training images)
        and ``near_copies``: the share of samples that are nearer than all but 5 % of the real images.
    """
    mean_of_real = float(of_real.mean())
    limit = of_real.double().quantile(NEAREST_REAL)
    return {
        "distance": float(distances.mean()),
        "distance_ratio": float(distances.mean()) / mean_of_real if mean_of_real > COPY else None,
        "near_copies": float((distances.double() < limit).double().mean()),
    }


@torch.no_grad()
def classified_as(clf: Classifier, images: Tensor, labels: Tensor, batch_size: int = 250) -> Tensor:
    """Whether ``clf`` in eval mode classifies each image as its label: bool ``[N]`` on the CPU."""
    with inner_loop(clf, "eval"):
        predictions = torch.cat([clf(part.to(clf.device)).argmax(1) for part in images.split(batch_size)])
    return predictions.cpu() == labels.cpu()


def image_metrics(
    images: Tensor, labels: Tensor, reference: Tensor | None = None, namer: Classifier | None = None
) -> dict[str, Any]:
    """The metrics of a set of images; ``None`` for those whose ``reference`` or ``namer`` is missing.

    Args:
        images: float ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the class that each image was generated for.
        reference: training images for the nearest distance, float or uint8.
        namer: a classifier trained independently of the one that generated the images.

    Returns:
        ``count``, ``named`` (fraction classified as their label, in [0, 1]) with its 95 % interval ``named_lower`` and
        ``named_upper``, ``distance`` (mean L2 distance to the nearest reference image) and ``distance_median``.
    """
    verdict = None if namer is None else share(classified_as(namer, images, labels))
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
    """The metrics of samples, of their starts and of real images.

    Metrics of samples alone are not informative: a class-informed start is classified as its class before any step, and
    a classifier may assign a class to noise. They have to be compared with those of the starts and of real images.

    Args:
        starts, samples: ``[N, C, H, W]`` in [0, 1]; sample i was generated from start i.
        labels: int64 ``[N]``, the class that each sample was generated for.
        reference: training images for the nearest distance, float or uint8.
        namer: a classifier trained independently of the one that generated the samples.
        real: images that were not used in training, and their labels.

    Returns:
        :func:`image_metrics` of ``start``, ``sample`` and, if given, ``real``.
    """
    sets = {"start": (starts, labels), "sample": (samples, labels)} | ({} if real is None else {"real": real})
    return {name: image_metrics(*both, reference, namer) for name, both in sets.items()}
