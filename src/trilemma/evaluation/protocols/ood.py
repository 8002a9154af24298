"""The protocol ``ood:SET``: can the classifier's scores tell its test images from those of another set."""

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
from trilemma.data.sources import load_images
from trilemma.errors import DataError, nearest
from trilemma.evaluation.protocol import Measurement, Protocol, Quantity, Request
from trilemma.metrics.ood import SCORES, auroc, auroc_interval, ood_scores

AUROC = Quantity("AUROC", "higher")


def uniform_noise(images: Tensor, seeds: Tensor) -> Tensor:
    """U(0, 1) in every pixel and channel."""
    return noise.uniform(seeds, 0, images.shape[1:])


def permuted(images: Tensor, seeds: Tensor) -> Tensor:
    """The test images with their pixels in a random order of each one's own; the channels of a pixel stay together."""
    order = noise.uniform(seeds, 0, (images[0, 0].numel(),)).argsort(1)
    shuffled = images.flatten(2).gather(2, order[:, None].expand(-1, images.shape[1], -1))
    return shuffled.view_as(images)


# A blank image may lie in both sets; more than this share of common ones is a mistake.
SHARED = 0.01
# Made from the test images: they need no other data.
MADE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "uniform-noise": uniform_noise,
    "permuted": permuted,
    "phase-scrambled": phase_scrambled,
}


def ood(name: str) -> Protocol:
    """The protocol against the set called ``name``: one of :data:`MADE`, a data set's name, or a path."""
    if name not in MADE and name not in DATASETS and not Path(name).exists():
        known = (*MADE, *DATASETS.rows())
        raise DataError(
            f"ood:{name}: neither a known set nor a path.{nearest(name, known)} Known: {', '.join(known)}"
        )

    def judge(request: Request) -> Measurement:
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

    return Protocol(1, False, judge, AUROC)


def outside_images(name: str, clf: Classifier, images: Tensor, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """As many images of the set as there are ``images``, or all it has, in their shape; and what they are.

    Those of data sets and paths come from the test part of a name and from everything at a path, in a fixed stratified
    order, without the classes that are known to be the classifier's own (:mod:`trilemma.evaluation.protocols.ood`).
    They are cropped
    to a square and resized by :mod:`trilemma.data.pictures`, grey is repeated and colour made grey.

    Args:
        name: as of :func:`ood`.
        clf: whose class names say what overlaps.
        images: the test images, uint8 or float, ``[N, C, H, W]``.
        seed: of the sets that are made.

    Returns:
        Float images on the CPU, and ``name``, ``split``, ``images`` (which) and ``dropped`` (classes) of the set.

    Raises:
        DataError: test images that are not square, or the set is the test images themselves.
    """
    if name in MADE:
        seeds = noise.image_seeds(len(images), torch.Generator().manual_seed(seed))
        about = {
            "name": name,
            "split": "made",
            "images": f"{len(images)} from the test images",
            "dropped": [],
        }
        return MADE[name](as_float(images), seeds), about
    channels, height, width = images.shape[1:]
    if height != width or channels not in (1, 3):
        raise DataError(
            f"ood:{name}: other images are made grey or RGB and square, but the test images are "
            f"{channels}x{height}x{width}; use {', '.join(MADE)}"
        )
    found = load_images(name, split="test" if name in DATASETS else "all", size=height)
    kept, dropped = without_overlap(found, clf.class_names)
    part = kept.first(len(images)) if len(kept) > len(images) else kept
    outside = in_channels(part.float_images(), channels)
    known = set(_stored(images))
    shared = sum(image in known for image in _stored(outside))
    if shared > SHARED * len(outside):
        raise DataError(
            f"ood:{name}: {shared} of {len(outside)} images are test images themselves; give another set"
        )
    which = (
        f"first {len(part)} of {len(kept)}, stratified order" if len(part) < len(kept) else f"all {len(part)}"
    )
    shown = found.name if name in DATASETS else _told_apart(found)
    return outside, {"name": shown, "split": found.split, "images": which, "dropped": dropped}


def _told_apart(found: ImageSet) -> str:
    """The name of what lies at a path: archives of one known name, as its train and its test part, differ in a hash."""
    if found.name.startswith("imagefolder:"):  # a hash already
        return found.name
    name, at, size = found.name.partition("@")
    pixels = hashlib.sha256(found.images.contiguous().view(-1).numpy().data)
    return f"{name}:{pixels.hexdigest()[:6]}{at}{size}"


def _stored(images: Tensor) -> list[bytes]:
    """Each image in 8 bits."""
    levels = (as_float(images) * 255).round().to(torch.uint8)
    return [image.tobytes() for image in levels.numpy()]


# What the classes of a network that says nothing about itself are called.
NUMBERED = tuple(str(k) for k in range(10))
# ImageNet's names (WordNet numbers) of the classes in Tiny-ImageNet that show an object of a CIFAR-10 class, or one
# that a person would take for it. In doubt a class is left out: an image of the distribution counted as one from
# outside falsifies the result, one image less does not.
WORDNET: dict[str, tuple[str, ...]] = {
    "automobile": (
        "n02814533", "n03100240", "n03670208", "n04285008",  # beach wagon, convertible, limousine, sports car
    ),
    "bird": ("n01855672", "n02002724", "n02056570", "n02058221"),  # goose, black stork, king penguin, albatross
    "cat": (
        "n02123045", "n02123394", "n02124075", "n02125311", "n02129165",  # tabby, Persian, Egyptian, cougar, lion
    ),
    "deer": ("n02423022",),  # gazelle
    "dog": (
        # Chihuahua, Yorkshire terrier, golden and Labrador retriever, German shepherd, standard poodle
        "n02085620", "n02094433", "n02099601", "n02099712", "n02106662", "n02113799",
    ),
    "frog": ("n01641577", "n01644900"),  # bullfrog, tailed frog
    "ship": ("n03447447", "n03662601"),  # gondola, lifeboat
    "truck": ("n03796401", "n03977966", "n04146614"),  # moving van, police van, school bus
}  # fmt: skip


def without_overlap(images: ImageSet, class_names: Sequence[str]) -> tuple[ImageSet, list[str]]:
    """``images`` without the classes that overlap those of a classifier, and the names of the ones left out.

    Known are CIFAR-10's classes against ImageNet's, where folders are named by WordNet numbers. Ten classes that are
    only numbered may be CIFAR-10's, so that they count as such. Of any other pair nothing is left out.
    """
    if tuple(class_names) not in (CIFAR10.class_names, NUMBERED):
        return images, []
    known = {name for names in WORDNET.values() for name in names}
    dropped = [name for name in images.class_names if name in known]
    places = torch.tensor([images.class_names.index(name) for name in dropped], dtype=torch.int64)
    return images.subset(~torch.isin(images.labels, places)), dropped
