"""The loader: a device-resident image set, handed out in batches that can be resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from trilemma.data.augmentation import Augmentation
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet, as_float
from trilemma.errors import DataError


class Loader:
    """Batches of an image set, float32 in [0, 1] on the device.

    The order of an epoch is a function of (seed, epoch), and the augmentation of an image of (seed, epoch,
    its place in the set): starting at a later step, or sharing the batches among more ranks, changes neither.

    Args:
        image_set: copied to the device as it is (uint8).
        batch_size: images of a step over all ranks together.
        device: where images live and batches are made.
        augmentation: ``None`` for none.
        seed: of order and augmentation.
        shuffle: a new order each epoch, or the set's own.
        drop_last: leave out the last, smaller batch.
        rank: which equal slice of every batch is ours, 0 to ``world_size - 1``. The slices of a smaller last
            batch are uneven and may be empty.
        world_size: number of ranks.
        repeats: how many steps in a row hand out the same batch, augmentation and all.

    Attributes:
        steps_per_epoch: number of steps of an epoch: its batches times ``repeats``.

    Raises:
        DataError: the batch is larger than the set (with ``drop_last``), or cannot be shared equally.
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
                f"batch size {batch_size} cannot be shared equally by {world_size} processes; use a multiple"
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
        """The batches of an epoch (counted from 0), one for each step from ``first_step`` on."""
        key = (self.seed * 1_000_003 + epoch) % 2**31
        count = len(self._labels)
        generator = torch.Generator().manual_seed(key)
        # On the CPU always, so that the order does not depend on the device.
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        order = order.to(self._labels.device)
        first, done = divmod(first_step, self.repeats)
        for number in range(first, self.steps_per_epoch // self.repeats):
            whole = order[number * self.batch_size : (number + 1) * self.batch_size]
            places = whole.tensor_split(self.world_size)[self.rank]
            plain = as_float(self._images[places])
            images = basic = plain
            if self.augmentation is not None:
                seeds = (key << 32) + places
                basic = self.augmentation.basic(plain, seeds)
                images = self.augmentation.rest(basic, seeds)
            views = {"unaugmented": plain, "basic": basic}
            batch = Batch(images, self._labels[places], views, places)
            for _ in range(self.repeats - (done if number == first else 0)):
                yield batch
