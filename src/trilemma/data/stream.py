"""Training images that are read from tar shards while the training runs; seed and epoch alone decide their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trilemma.data.pictures import decode, decoding_threads
from trilemma.data.shards import Sample, ShardFolder
from trilemma.progress import bar, can_draw

# Images over which the order is shuffled, and batches that are decoded ahead of the training.
WINDOW, AHEAD = 10_000, 4
# Images that are decoded at once into an array.
_CHUNK = 256


@dataclass(frozen=True, eq=False, repr=False)
class ShardStream:
    """The training images of a folder of shards. Only labels are in memory.

    Attributes:
        folder: the shards.
        positions: int64 ``[N]``, ascending: which of the images of all shards these are.
        labels: int64 ``[N]``.
        image_shape: (C, H, W) of the decoded images.
        name: as of :class:`trilemma.data.image_set.ImageSet`.
        window: about so many encoded images are in memory, and over so many places an image is shuffled.
    """

    folder: ShardFolder
    positions: Tensor
    labels: Tensor
    image_shape: tuple[int, int, int]
    name: str
    window: int = WINDOW
    split: str = "train"

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape, shards = "x".join(map(str, self.image_shape)), len(self.folder.index.shards)
        return f"ShardStream({self.name!r}, {self.split}: {len(self)} images {shape} in {shards} shards)"

    def order(self, generator: torch.Generator) -> Tensor:
        """The order of an epoch, a permutation ``[N]``: shards in random order, then every image moved at random.

        An image is moved by at most ``window`` places, so that the shards are read one after another.
        """
        ends = torch.tensor(self.folder.ends)
        shard_of = torch.searchsorted(ends, self.positions, right=True)
        shards = torch.randperm(len(ends), generator=generator)
        turn = torch.empty_like(shards)
        turn[shards] = torch.arange(len(shards))
        in_turn = torch.argsort(turn[shard_of], stable=True)
        moved = torch.arange(len(self), dtype=torch.float64)
        moved += self.window * torch.rand(len(self), dtype=torch.float64, generator=generator)
        return in_turn[torch.argsort(moved, stable=True)]

    def batches(self, wanted: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each of ``wanted`` (indices ``[n]``), uint8 ``[n, C, H, W]``, decoded in the background.

        A shard is read when the first of its images is due; its other images are kept, encoded, until theirs are. Of
        shards without such images nothing is read.

        Raises:
            DataError: a shard or an image is damaged.
        """
        reader = _Reader(self.folder, self.image_shape)
        indices = [self.positions[index].tolist() for index in wanted]
        reader.expect([position for positions in indices for position in positions])
        pending: deque[Future[Tensor]] = deque()
        # One thread reads, so that shards are read in turn; it hands the decoding to others.
        with reader.pool, ThreadPoolExecutor(1) as ahead:
            try:
                for positions in indices:
                    pending.append(ahead.submit(reader.decoded, positions))
                    if len(pending) > AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for one in pending:
                    one.cancel()


class _Reader:
    """Reads and decodes images of shards, each shard once."""

    def __init__(self, folder: ShardFolder, shape: tuple[int, int, int]) -> None:
        self.folder, self.shape = folder, shape
        self.ends = folder.ends
        self.expected = np.zeros(self.ends[-1], bool)
        # Encoded images that were read and are not due yet, by position.
        self.held: dict[int, Sample] = {}
        self.threads = decoding_threads(sum(shard.bytes for shard in folder.index.shards) / self.ends[-1])
        self.pool = ThreadPoolExecutor(self.threads)

    def expect(self, positions: Sequence[int]) -> None:
        """Says which images will be asked for, each once."""
        self.expected[positions] = True

    def decoded(self, positions: Sequence[int]) -> Tensor:
        """The images at ``positions`` in the shards, uint8 ``[n, C, H, W]``."""
        for position in positions:
            if position not in self.held:
                self._read(int(np.searchsorted(self.ends, position, side="right")))
        samples = [self.held.pop(position) for position in positions]
        run = map if self.threads == 1 else self.pool.map
        images = np.empty((len(samples), *self.shape), np.uint8)
        for index, pixels in enumerate(run(self._decode, samples)):
            images[index] = pixels
        return torch.from_numpy(images)

    def _decode(self, sample: Sample) -> NDArray[np.uint8]:
        return decode(sample.data, self.shape, sample.where)

    def _read(self, shard: int) -> None:
        start = self.ends[shard] - len(self.folder.index.shards[shard].labels)
        for position, sample in enumerate(self.folder.read(shard), start):
            if self.expected[position]:
                self.held[position] = sample


def fill(folder: ShardFolder, positions: Sequence[int], out: NDArray[np.uint8], title: str) -> None:
    """Decodes images of shards into an array.

    Args:
        folder: the shards.
        positions: which of the images of all shards, ascending.
        out: uint8 ``[n, C, H, W]``.
        title: of the progress bar.
    """
    channels, height, width = out.shape[1:]
    reader = _Reader(folder, (channels, height, width))
    reader.expect(positions)
    with reader.pool, bar(title, len(positions), can_draw()) as advance:
        for start in range(0, len(positions), _CHUNK):
            chunk = positions[start : start + _CHUNK]
            out[start : start + len(chunk)] = reader.decoded(chunk).numpy()
            advance(len(chunk))
