"""Writes any data set as tar shards (:mod:`trilemma.data.shards`): image files as they are, arrays as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from PIL import Image
from torch import Tensor

from trilemma.config.registry import DATASETS
from trilemma.data.catalogue import find_dataset
from trilemma.data.image_files import images_in
from trilemma.data.image_set import ImageSet
from trilemma.data.layout import split_spans
from trilemma.data.left_out import print_remarks
from trilemma.data.locate import locate_images
from trilemma.data.shards import Index, Sample, is_shard_folder, write_shards
from trilemma.data.sources import stored_parts
from trilemma.data.splitting import stratified_order
from trilemma.errors import DataError

# Images per shard: 110 MB of ImageNet's JPEGs.
PER_SHARD = 1_000


class _Samples(Sequence[Sample]):
    """Samples that are made when they are read, in a fixed stratified order: every shard has images of all classes.

    Args:
        labels: int64 ``[N]``.
        make: returns the sample of an index.
    """

    def __init__(self, labels: Tensor, make: Callable[[int], Sample]) -> None:
        self._order, self._make = stratified_order(labels).tolist(), make

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._make(one) for one in self._order[index]]
        return self._make(self._order[index])


def shard_source(source: str, out: Path, root: str | Path | None = None, per_shard: int = PER_SHARD) -> Index:
    """Writes a data set as shards.

    Args:
        source: name of a data set, or path of an image folder, archive or npz file.
        out: folder of the shards; must be empty, and is created if it does not exist.
        root: path of a named data set.
        per_shard: number of images per shard.

    Returns:
        The index that was written.

    Raises:
        DataError: the source cannot be read, an image is corrupt, or ``out`` is not empty.
        NotStoredError: a shard cannot be written.
        MissingExtraError: webdataset is not installed.
    """
    named = source in DATASETS
    files = not named or not find_dataset(source).read
    path = Path(root) if named and root is not None else Path(source)
    if named and files and root is None:
        raise DataError(f"data set {source!r} needs --root: the path of its images")
    if files and is_shard_folder(path):
        raise DataError(f"{path}: is a folder of shards already; use it as data.root with data.name=shards")
    if files and all(place.suffix.lower() != ".npz" for _, place in locate_images(path)[0]):
        return _shard_files(path, out, per_shard)
    parts = stored_parts(source, root if named else None)
    names = next(iter(parts.values())).class_names
    samples = {split: _Samples(images.labels, _png(images)) for split, images in parts.items()}
    return write_shards(out, samples, names, per_shard)


def _shard_files(path: Path, out: Path, per_shard: int) -> Index:
    members, left_out = images_in(path)
    print_remarks(str(path), left_out.lines())
    spans, names, labels = split_spans([image for image, _ in members], str(path))

    def part(start: int, end: int) -> _Samples:
        def make(index: int) -> Sample:
            image, container = members[start + index]
            data = container.read(image.path, None)
            return Sample(data, labels[start + index], f"{container.where}:{image.path}")

        return _Samples(Tensor(labels[start:end]).long(), make)

    return write_shards(out, {split: part(*span) for split, span in spans.items()}, names, per_shard)


def _png(images: ImageSet) -> Callable[[int], Sample]:
    """A function that returns an image of a set as PNG."""

    def make(index: int) -> Sample:
        pixels = images.images[index].numpy()
        stream = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(stream, "PNG")
        return Sample(stream.getvalue(), int(images.labels[index]), f"{images.name}:{index}.png")

    return make
