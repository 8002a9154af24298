"""Augmentation of whole batches: random crop, flip, policy and cutout, with random numbers that depend on the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma import noise
from trilemma.config.registry import DATASETS
from trilemma.data.auto_augment import auto_augment
from trilemma.data.catalogue import find_dataset
from trilemma.data.image_set import source_name
from trilemma.errors import DataError
from trilemma.transfers import sent


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip, a policy of colour and geometry operations, and cutout, in this order.

    Attributes:
        crop: zero padding in pixels on every side before a random crop of the original size; 0 for none.
        flip: horizontal flip with probability 1/2.
        cutout: side in pixels of a square that is set to 0, with uniform centre and clipped at the border; 0 for none
            (DeVries and Taylor, 2017).
        policy: ``"autoaugment"`` for :func:`trilemma.data.auto_augment.auto_augment`, or ``"none"``.

    Raises:
        DataError: a negative size.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    policy: Literal["none", "autoaugment"] = "none"

    def __post_init__(self) -> None:
        if self.crop < 0 or self.cutout < 0:
            raise DataError(
                f"augmentation: crop {self.crop}, cutout {self.cutout}; use sizes in pixels of 0 or more"
            )

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augments ``[N, C, H, W]`` images in [0, 1] with seeds from ``generator`` (torch's default if ``None``)."""
        return self.apply(images, noise.image_seeds(len(images), generator, images.device))

    def apply(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Augments images with one seed each; the result of an image does not depend on its batch.

        Args:
            images: ``[N, C, H, W]`` in [0, 1].
            seeds: int64 ``[N]``; on the CPU, where the policy chooses its operations, they cost no synchronisation.
        """
        return self.rest(self.basic(images, seeds), seeds)

    def basic(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Crop and flip only, the first part of :meth:`apply`."""
        if not (self.crop or self.flip):
            return images
        top, left, mirror = noise.uniform(sent(seeds, images.device), 0, (5,))[:, :3].unbind(1)
        offsets = 2 * self.crop + 1
        return self._shift(images, (top * offsets).long(), (left * offsets).long(), mirror < 0.5)

    def rest(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Policy and cutout, the second part of :meth:`apply`."""
        if self.policy == "autoaugment":
            images = auto_augment(images, noise.derive(seeds, 0))
        if self.cutout:
            row, column = noise.uniform(sent(seeds, images.device), 0, (5,))[:, 3:].unbind(1)
            images = self._cut(images, row, column)
        return images

    def _shift(self, images: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
        """Crops the padded image at (top, left) and flips it, as a single gather over flattened pixels."""
        count, channels, height, width = images.shape
        padded = F.pad(images, (self.crop,) * 4) if self.crop else images
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(count, width)
        if self.flip:
            columns = torch.where(mirror[:, None], width - 1 - columns, columns)
        flat = rows[:, :, None] * padded.shape[3] + (columns + left[:, None])[:, None, :]
        index = flat.view(count, 1, height * width).expand(count, channels, height * width)
        return padded.flatten(2).gather(2, index).view(images.shape)

    def _cut(self, images: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Sets a square around (row, column), fractions of the size, to 0."""
        height, width = images.shape[2:]
        first_row = (row * height).long() - self.cutout // 2
        first_column = (column * width).long() - self.cutout // 2
        rows = torch.arange(height, device=images.device) - first_row[:, None]
        columns = torch.arange(width, device=images.device) - first_column[:, None]
        in_rows, in_columns = (rows >= 0) & (rows < self.cutout), (columns >= 0) & (columns < self.cutout)
        return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def default_augmentation(name: str, image_shape: tuple[int, int, int]) -> Augmentation:
    """The default augmentation of a data set: crop with padding of 1/8 of the side, and flip if the data set allows it.

    Args:
        name: name of a data set or an image set (``"svhn"``, ``"cifar10-jpeg@16"``); digits, mnist and svhn are not
            flipped.
        image_shape: (C, H, W).
    """
    return Augmentation(crop=min(image_shape[1:]) // 8, flip=_may_flip(source_name(name)))


def _may_flip(name: str) -> bool:
    """Whether a flipped image keeps its class, by the data set's table entry; true for data without an entry."""
    return name not in DATASETS or find_dataset(name).flip
