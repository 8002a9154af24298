"""The loader: batches of images on the device, or of a stream; an epoch can be resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trilemma.data.augmentation import Augmentation
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet, as_float
from trilemma.data.stream import ShardStream
from trilemma.errors import DataError
from trilemma.transfers import sent


class Loader:
    """Batches of an image set or a stream, float32 in [0, 1] on the device.

    The order of an epoch depends only on (seed, epoch), and the augmentation of an image only on (seed, epoch, its
    index in the set). Neither changes with the first step or with the number of ranks.

    Args:
        image_set: copied to the device without conversion (usually uint8); or a stream, whose images are read and
            decoded in the background, those of this rank only.
        batch_size: images per step, over all ranks together.
        device: device of the images of a set, and of the batches.
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
        image_set: ImageSet | ShardStream,
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
        self._labels = image_set.labels.to(device)
        # Of a set once, of a stream batch by batch.
        self._images = image_set.images.to(device) if isinstance(image_set, ImageSet) else None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields one batch per step of an epoch (counted from 0), beginning with ``first_step``."""
        key = (self.seed * 1_000_003 + epoch) % 2**31
        order = self._order(torch.Generator().manual_seed(key))
        first, done = divmod(first_step, self.repeats)
        numbers = range(first, self.steps_per_epoch // self.repeats)
        wholes = (order[number * self.batch_size :][: self.batch_size] for number in numbers)
        batches = [whole.tensor_split(self.world_size)[self.rank] for whole in wholes]
        for number, on_cpu, (index, pixels) in zip(numbers, batches, self._pixels(batches), strict=True):
            unaugmented = as_float(pixels)
            images = basic = unaugmented
            if self.augmentation is not None:
                seeds = (key << 32) + on_cpu
                basic = self.augmentation.basic(unaugmented, seeds)
                images = self.augmentation.rest(basic, seeds)
            views = {"unaugmented": unaugmented, "basic": basic}
            batch = Batch(images, self._labels[index], views, index)
            for _ in range(self.repeats - (done if number == first else 0)):
                yield batch

    def _order(self, generator: torch.Generator) -> Tensor:
        """The order of an epoch; always drawn on the CPU, so that it does not depend on the device."""
        count = len(self.image_set)
        if not self.shuffle:
            return torch.arange(count)
        if isinstance(self.image_set, ShardStream):
            return self.image_set.order(generator)
        return torch.randperm(count, generator=generator)

    def _pixels(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the indices of each batch and its images as they are stored, both on the device."""
        device = self._labels.device
        if isinstance(self.image_set, ShardStream):
            for batch, images in zip(batches, self.image_set.batches(batches), strict=True):
                yield sent(batch, device), sent(images, device)
        elif self._images is not None:
            for index in (sent(batch, device) for batch in batches):
                yield index, self._images.index_select(0, index)
