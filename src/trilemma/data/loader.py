"""The loader: batches of an image set that is stored on the device; an epoch can be resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from trilemma.data.augmentation import Augmentation
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet, as_float
from trilemma.errors import DataError


class Loader:
    """Batches of an image set, float32 in [0, 1] on the device.

    The order of an epoch depends only on (seed, epoch), and the augmentation of an image only on (seed, epoch, its
    index in the set). Neither changes with the first step or with the number of ranks.

    Args:
        image_set: copied to the device without conversion (usually uint8).
        batch_size: images per step, over all ranks together.
        device: device of the stored images and of the batches.
        augmentation: ``None`` for none.
        seed: seed of order and augmentation.
        shuffle: use a new random order in each epoch; otherwise the order of the set.
        drop_last: skip the last batch of an epoch if it is smaller.
        rank: rank of this process, 0 to ``world_size - 1``; it gets this slice of every batch. The slices of a smaller
            last batch may differ in size and may be empty.
        world_size: number of ranks.
        repeats: number of consecutive steps with the same batch and the same augmentation.

    Attributes:
        steps_per_epoch: number of batches of an epoch times ``repeats``.

    Raises:
        DataError: the batch size is larger than the set (with ``drop_last``), or no multiple of ``world_size``.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise DataError(
                f"batch size {batch_size} cannot be shared equally by {world_size} processes; "
                f"use a multiple of {world_size}"
            )
        if drop_last and batch_size > len(image_set):
            raise DataError(
                f"batch size {batch_size} is larger than the {len(image_set)} {image_set.split} images of "
                f"{image_set.name}; make it smaller"
            )
        self.image_set = image_set
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.repeats = repeats
        batches = len(image_set) // batch_size if drop_last else -(-len(image_set) // batch_size)
        self.steps_per_epoch = batches * repeats
        self._images = image_set.images.to(device)
        self._labels = image_set.labels.to(device)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields one batch per step of an epoch (counted from 0), beginning with ``first_step``."""
        key = (self.seed * 1_000_003 + epoch) % 2**31
        count = len(self._labels)
        generator = torch.Generator().manual_seed(key)
        # Always drawn on the CPU, so that the order does not depend on the device.
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        order = order.to(self._labels.device)
        first, done = divmod(first_step, self.repeats)
        for number in range(first, self.steps_per_epoch // self.repeats):
            whole = order[number * self.batch_size : (number + 1) * self.batch_size]
            index = whole.tensor_split(self.world_size)[self.rank]
            unaugmented = as_float(self._images[index])
            images = basic = unaugmented
            if self.augmentation is not None:
                seeds = (key << 32) + index
                basic = self.augmentation.basic(unaugmented, seeds)
                images = self.augmentation.rest(basic, seeds)
            views = {"unaugmented": unaugmented, "basic": basic}
            batch = Batch(images, self._labels[index], views, index)
            for _ in range(self.repeats - (done if number == first else 0)):
                yield batch
