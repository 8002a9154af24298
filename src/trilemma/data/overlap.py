"""Classes of other data sets that show what CIFAR-10 shows, so that they are not from outside of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trilemma.data.catalogue import OFFICIAL
from trilemma.data.image_set import ImageSet

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
    if tuple(class_names) not in (OFFICIAL["cifar10"].class_names, NUMBERED):
        return images, []
    known = {name for names in WORDNET.values() for name in names}
    dropped = [name for name in images.class_names if name in known]
    places = torch.tensor([images.class_names.index(name) for name in dropped], dtype=torch.int64)
    return images.subset(~torch.isin(images.labels, places)), dropped
