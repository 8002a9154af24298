"""An image set: images, labels and the name its result rows print."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.data.splitting import stratified_order
from trilemma.errors import DataError


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 to contiguous float32 in [0, 1] (value / 255); float images unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def source_name(name: str) -> str:
    """The data set that an image set's name begins with: ``digits`` of ``digits@16[:300]``."""
    return name.partition("[")[0].partition("@")[0]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images on the CPU.

    Attributes:
        images: uint8 ``[N, C, H, W]``, usually memory-mapped; float32 in [0, 1] only where the caller gave
            float tensors (they are never rounded). :meth:`float_images` reads both.
        labels: int64 ``[N]``, 0 to ``num_classes - 1``.
        class_names: one name per class, in label order.
        name: the data's own name in result rows: ``"digits"``, ``"cifar10-jpeg"``,
            ``"imagefolder:1a2b3c4d5e6f"``; followed by ``@SIZE`` where the images were resized from what that
            name stands for, and by ``[:N]`` where only the first N training images were kept.
        split: ``"train"``, ``"held-out"``, ``"test"`` or ``"all"``.

    Raises:
        DataError: images, labels and class names do not fit together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"{self.name}: images must be uint8 or float32 [N, C, H, W], "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.name}: labels must be int64 [{len(self.images)}], one per image, "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        check_labels(self.labels, len(self.class_names), self.name)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, index: Tensor | Sequence[int]) -> ImageSet:
        """The images at ``index`` (places, or a boolean mask), in that order; a copy in memory."""
        places = _places(index)
        return dataclasses.replace(self, images=self.images[places], labels=self.labels[places])

    def first(self, count: int) -> ImageSet:
        """The first ``count`` images of a fixed stratified order; every image if there are fewer.

        ``first(10)`` of ten classes holds one image of each, and is a prefix of ``first(100)``.
        """
        return self.subset(stratified_order(self.labels)[:count])

    def float_images(
        self, index: Tensor | Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Contiguous float32 ``[N, C, H, W]`` in [0, 1] on ``device``, all of them or those at ``index``."""
        images = self.images if index is None else self.images[_places(index)]
        return as_float(images.to(device))


def _places(index: Tensor | Sequence[int]) -> Tensor:
    found = torch.as_tensor(index)
    return found.nonzero().flatten() if found.dtype == torch.bool else found.long()


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; models are chosen on ``held_out``, never on ``test``."""

    train: ImageSet
    held_out: ImageSet
    test: ImageSet


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise :class:`DataError` unless every label is in 0 to ``num_classes - 1``."""
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise DataError(
            f"{where}: label {int(labels[place])} of image {place} is out of range; "
            f"{num_classes} classes need labels 0 to {num_classes - 1}"
        )
