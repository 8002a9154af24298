"""The protocol ``ood:SET``: how well the classifier's scores separate its test images from those of another set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.correctness import full_precision
from trilemma.config.registry import DATASETS
from trilemma.data.catalogue import CIFAR10
from trilemma.data.image_set import ImageSet, as_float
from trilemma.data.outlier_images import in_channels, phase_scrambled
from trilemma.data.sources import load_unlabelled
from trilemma.errors import DataError, nearest
from trilemma.evaluation.protocol import Measurement, Protocol, Quantity, Request
from trilemma.metrics.ood import SCORES, auroc, auroc_interval, ood_scores

AUROC = Quantity("AUROC", "higher")


def uniform_noise(images: Tensor, seeds: Tensor) -> Tensor:
    """Images of U(0, 1) noise in every pixel and channel, shaped like ``images``."""
    return noise.uniform(seeds, 0, images.shape[1:])


def permuted(images: Tensor, seeds: Tensor) -> Tensor:
    """The test images with their pixels in random order, one order per image; the channels of a pixel stay together."""
    order = noise.uniform(seeds, 0, (images[0, 0].numel(),)).argsort(1)
    shuffled = images.flatten(2).gather(2, order[:, None].expand(-1, images.shape[1], -1))
    return shuffled.view_as(images)


# Largest share of the set's images that may also be test images: a blank image may be in both sets.
MAX_SHARED = 0.01
# Sets that are made from the test images, without other data.
SYNTHETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "uniform-noise": uniform_noise,
    "permuted": permuted,
    "phase-scrambled": phase_scrambled,
}


def ood(name: str) -> Protocol:
    """The protocol ``ood:NAME``.

    Args:
        name: a set of :data:`SYNTHETIC`, the name of a data set, or a path.

    Raises:
        DataError: none of these.
    """
    if name not in SYNTHETIC and name not in DATASETS and not Path(name).exists():
        known = (*SYNTHETIC, *DATASETS.rows())
        raise DataError(
            f"ood:{name}: neither a known set nor a path.{nearest(name, known)} Known: {', '.join(known)}"
        )

    def measure(request: Request) -> Measurement:
        clf, images = request.clf, request.images
        outside, about = outside_images(name, clf, images, request.seed)
        with full_precision(clf.device):
            inner, outer = (ood_scores(clf, part, request.batch_size) for part in (images, outside))
        request.advance(len(images))
        areas = {score: auroc(inner[score], outer[score]) for score in SCORES}
        intervals = {score: auroc_interval(areas[score], len(images), len(outside)) for score in SCORES}
        first, *others = SCORES
        return Measurement(
            areas[first],
            len(images),
            intervals[first],
            also={score: areas[score] for score in others},
            facts={
                "score": first,
                "outside": about,
                "intervals": {s: list(both) for s, both in intervals.items()},
            },
            name=f"ood:{about['name']}",
        )

    return Protocol(1, False, measure, AUROC)


def outside_images(name: str, clf: Classifier, images: Tensor, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Images of the set, at most as many as ``images`` and in their shape, with a description of them.

    Of a named data set the test split is used, of a path all images in any arrangement, in a fixed stratified order and
    without the classes that overlap the classifier's (:func:`without_overlap`). Images are cropped to a square and
    resized by :mod:`trilemma.data.pictures`; grey is repeated for RGB, and RGB converted to grey, as the test images
    require.

    Args:
        name: as in :func:`ood`.
        clf: its class names decide which classes overlap.
        images: the test images, uint8 or float, ``[N, C, H, W]``.
        seed: seed of the synthetic sets.

    Returns:
        Float images on the CPU, and ``name``, ``split``, ``images`` (which) and ``dropped`` (classes) of the set.

    Raises:
        DataError: the test images are not square, or the set contains the test images themselves.
    """
    if name in SYNTHETIC:
        seeds = noise.image_seeds(len(images), torch.Generator().manual_seed(seed))
        about = {
            "name": name,
            "split": "made",
            "images": f"{len(images)} from the test images",
            "dropped": [],
        }
        return SYNTHETIC[name](as_float(images), seeds), about
    channels, height, width = images.shape[1:]
    if height != width or channels not in (1, 3):
        raise DataError(
            f"ood:{name}: images of another set can be made square and grey or RGB, but the test images are "
            f"{channels}x{height}x{width}; use {', '.join(SYNTHETIC)}"
        )
    whole_set = load_unlabelled(name, "test", height)
    remaining, dropped = without_overlap(whole_set, clf.class_names)
    part = remaining.first(len(images)) if len(remaining) > len(images) else remaining
    outside = in_channels(part.float_images(), channels)
    test_images = set(_as_bytes(images))
    shared = sum(image in test_images for image in _as_bytes(outside))
    if shared > MAX_SHARED * len(outside):
        raise DataError(
            f"ood:{name}: {shared} of {len(outside)} images are test images themselves; choose another set"
        )
    which = (
        f"first {len(part)} of {len(remaining)}, stratified order"
        if len(part) < len(remaining)
        else f"all {len(part)}"
    )
    unique_name = whole_set.name if name in DATASETS else _unique_name(whole_set)
    return outside, {"name": unique_name, "split": whole_set.split, "images": which, "dropped": dropped}


def _unique_name(images: ImageSet) -> str:
    """The name of images from a path, with a hash of their pixels.

    The hash distinguishes archives of one known name, such as the train and test split of a data set.
    """
    # This name contains a hash already.
    if images.name.startswith("imagefolder:"):
        return images.name
    name, at, size = images.name.partition("@")
    pixels = hashlib.sha256(images.images.contiguous().view(-1).numpy().data)
    return f"{name}:{pixels.hexdigest()[:6]}{at}{size}"


def _as_bytes(images: Tensor) -> list[bytes]:
    """The 8-bit pixel values of each image."""
    levels = (as_float(images) * 255).round().to(torch.uint8)
    return [image.tobytes() for image in levels.numpy()]


# Class names of a classifier without names, for ten classes.
NUMBERED = tuple(str(k) for k in range(10))
# Tiny-ImageNet classes (WordNet numbers) that show an object of a CIFAR-10 class, or one that a person would take for
# it. Doubtful classes are left out: an in-distribution image counted as outside falsifies the result, a missing image
# does not.
WORDNET: dict[str, tuple[str, ...]] = {
    "automobile": (
        # beach wagon, convertible, limousine, sports car
        "n02814533", "n03100240", "n03670208", "n04285008",
    ),
    # goose, black stork, king penguin, albatross
    "bird": ("n01855672", "n02002724", "n02056570", "n02058221"),
    "cat": (
        # tabby, Persian, Egyptian, cougar, lion
        "n02123045", "n02123394", "n02124075", "n02125311", "n02129165",
    ),
    # gazelle
    "deer": ("n02423022",),
    "dog": (
        # Chihuahua, Yorkshire terrier, golden and Labrador retriever, German shepherd, standard poodle
        "n02085620", "n02094433", "n02099601", "n02099712", "n02106662", "n02113799",
    ),
    # bullfrog, tailed frog
    "frog": ("n01641577", "n01644900"),
    # gondola, lifeboat
    "ship": ("n03447447", "n03662601"),
    # moving van, police van, school bus
    "truck": ("n03796401", "n03977966", "n04146614"),
}  # fmt: skip


def without_overlap(images: ImageSet, class_names: Sequence[str]) -> tuple[ImageSet, list[str]]:
    """``images`` without the classes that overlap those of a classifier, and the names of the removed classes.

    Only the overlap of CIFAR-10 with ImageNet is known, for folders named by WordNet numbers. A classifier with ten
    numbered classes may be one of CIFAR-10 and is treated as such. For any other pair nothing is removed.
    """
    if tuple(class_names) not in (CIFAR10.class_names, NUMBERED):
        return images, []
    overlapping = {name for names in WORDNET.values() for name in names}
    dropped = [name for name in images.class_names if name in overlapping]
    classes = torch.tensor([images.class_names.index(name) for name in dropped], dtype=torch.int64)
    return images.subset(~torch.isin(images.labels, classes)), dropped
