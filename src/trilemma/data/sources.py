"""Loading image sets by data set name or path: :func:`load_splits` for training, :func:`load_images` for evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.config.plug_ins import call_registered
from trilemma.config.registry import DATASETS, import_object
from trilemma.data import catalogue
from trilemma.data.arrays import arrays_contents, as_arrays, read_npz, tensor_set
from trilemma.data.cache import FORMAT, Contents, Entry, cached
from trilemma.data.download import file_sha256, verify_checksum
from trilemma.data.image_files import image_files_contents
from trilemma.data.image_set import ImageSet, Splits
from trilemma.data.locate import folder_state, locate_images, locate_official
from trilemma.data.splitting import stratified_split
from trilemma.errors import DataError, nearest

# The test part of a source without splits. Not configurable, so that it is the same in training and evaluation.
TEST_FRACTION = 0.2


def load_splits(
    name: str,
    root: str | Path | None = None,
    size: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    train_images: int | None = None,
) -> Splits:
    """Loads the train, held-out and test parts of a data set.

    - ``digits``: fixed parts of 1,200 / 200 / 397 images; ``held_out`` and ``seed`` have no effect.
    - ``cifar10``, ``cifar100``, ``mnist``, ``fashion-mnist``, ``svhn``: the official archives, downloaded
      into the cache folder, or found in ``root``. ``root`` may hold images instead, as for ``folder``.
    - ``folder``: ``root`` is an image folder, ``.tar``, ``.tar.gz``, ``.tgz``, ``.zip`` or ``.npz``, or a
      folder with one of these archives, or with one per split, named ``train*``, ``val*``, ``test*``.
      Layouts: :mod:`trilemma.data.layout`; sizes and channels: :mod:`trilemma.data.image_files`; single images:
      :mod:`trilemma.data.pictures`; arrays: :func:`trilemma.data.arrays.read_npz`.

    The held-out part is a stratified fraction of the train part that depends only on its labels and ``seed``. Of data
    with train, val and test splits, it is the val split. Of data with train and val only, val is the test part; of data
    without splits, a fixed stratified fifth is.

    The name of an image set identifies its pixels: an image folder gets an official name only if its archives are known
    to have the official pixels. Nothing is written to ``root``.

    Args:
        name: a name of the registry ``DATASETS``.
        root: path of the data, or ``None`` for the cache folder.
        size: side in pixels to which every image is resized, or ``None``.
        held_out: fraction of the train part, in (0, 1).
        seed: seed of the choice of the held-out part.
        train_images: use only this many training images, the first of a fixed stratified order; the name of the train
            part then ends in ``[:train_images]``. The held-out and test parts do not change.

    Raises:
        DataError: the source cannot be read, or an argument is invalid.
    """
    if not 0 < held_out < 1:
        raise DataError(f"held_out is {held_out}; give a fraction of the train part, between 0 and 1")
    source = _open_named(name, root, size)
    parts = source.divide(held_out, seed)
    missing = [split for split in ("train", "test") if split not in parts]
    if missing:
        raise DataError(
            f"{source.where}: has no {missing[0]} part; add a folder or archive named {missing[0]}"
        )
    splits = Splits(*(source.image_set(split, parts[split]) for split in ("train", "held-out", "test")))
    for images in (splits.held_out, splits.test):
        if len(images) == 0:
            raise DataError(
                f"{source.where}: too few images for a {images.split} part; add images to every class"
            )
    if train_images is None:
        return splits
    return dataclasses.replace(splits, train=_shortened(splits.train, train_images))


def _shortened(train: ImageSet, count: int) -> ImageSet:
    """The first ``count`` images of the train part, with ``[:count]`` appended to the name.

    Raises:
        DataError: ``count`` is below the number of classes or above the number of images.
    """
    if not train.num_classes <= count <= len(train):
        raise DataError(
            f"train_images is {count}; {train.name} has {len(train):,} training images in {train.num_classes} "
            f"classes: give a number from {train.num_classes} to {len(train)}, or none for all"
        )
    return dataclasses.replace(train.first(count), name=f"{train.name}[:{count}]")


def load_images(
    source: str | Path | tuple[Tensor, Tensor],
    split: str = "test",
    root: str | Path | None = None,
    size: int | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageSet:
    """Loads images to evaluate on: one part of a data set, or tensors.

    A path has the same parts as in :func:`load_splits`, so that a folder's training images are not in its test part: of
    a source without splits, ``"test"`` is the same fixed fifth, and ``"all"`` is everything.

    Args:
        source: the name of a data set (it has precedence over a path of the same name), a path, or (images, labels):
            images ``[N, C, H, W]``, uint8, or float in [0, 1]; labels integers ``[N]``. Float images are not rounded.
        split: ``"train"``, ``"held-out"``, ``"test"`` or ``"all"``.
        root: path of a named data set.
        size: side in pixels to which every image is resized; not for tensors.
        class_names: the classes in the classifier's label order. Labels of a name or a path are renumbered by class
            name; for tensors these are only the names.

    Raises:
        DataError: the source cannot be read, or an argument is invalid.
    """
    if isinstance(source, tuple):
        if size is not None or root is not None:
            raise DataError(
                "size and root are for named data and paths only; resize the tensors and omit both"
            )
        return tensor_set(*source, split=split, class_names=class_names)
    if isinstance(source, str) and source in DATASETS:
        opened = _open_named(source, root, size)
    elif Path(source).exists():
        if root is not None:
            raise DataError(f"{source}: a path needs no root (got {root}); root goes with a data set's name")
        opened = _open_images(Path(source), size)
    else:
        raise _unknown(str(source))
    parts = opened.divide()
    if split not in parts:
        raise DataError(f"{opened.where}: has no {split!r} part; it has {', '.join(parts)}")
    images = opened.image_set(split, parts[split])
    return images if class_names is None else _renumber(images, tuple(class_names))


def _unknown(name: str) -> DataError:
    """The error for a source that is neither a data set nor a path."""
    known = ", ".join(DATASETS.rows())
    return DataError(
        f"{name!r} is neither a data set nor a path.{nearest(name, DATASETS.rows())} Known: {known}"
    )


@dataclass(frozen=True)
class _Source:
    """A decoded source.

    Attributes:
        entry: its images, labels and splits.
        name: name of its image sets.
        where: path or name, for messages.
    """

    entry: Entry
    name: str
    where: str

    def divide(self, held_out: float = 0.1, seed: int = 0) -> dict[str, slice | Tensor]:
        """Split name to the indices of its images, by the rules of :func:`load_splits`."""
        labels = torch.from_numpy(self.entry.labels)
        spans: dict[str, slice | Tensor] = {name: slice(*span) for name, span in self.entry.parts.items()}
        train = spans.get("train", spans.get("all"))
        val = spans.get("val") if "test" in spans else None
        test = spans.get("test", spans.get("val"))
        indices = torch.arange(len(labels))
        parts: dict[str, slice | Tensor] = {"all": slice(0, len(labels))}
        if train is not None:
            if test is None:
                rest, part = stratified_split(labels[train], round(TEST_FRACTION * len(labels[train])))
                train, test = indices[train][rest], indices[train][part]
            if val is None:
                rest, part = stratified_split(labels[train], round(held_out * len(labels[train])), seed)
                train, val = indices[train][rest], indices[train][part]
            parts |= {"train": train, "held-out": val}
        return parts if test is None else parts | {"test": test}

    def image_set(self, split: str, index: slice | Tensor) -> ImageSet:
        """The images at ``index`` as an image set."""
        images, labels = torch.from_numpy(self.entry.images), torch.from_numpy(self.entry.labels)
        return ImageSet(images[index], labels[index], self.entry.class_names, self.name, split)


def _open_named(name: str, root: str | Path | None, size: int | None) -> _Source:
    """Decodes a data set of the registry."""
    if name not in DATASETS:
        raise _unknown(name)
    dataset = catalogue.find_dataset(name)
    if not dataset.read:
        if root is None:
            raise DataError(f"data set {name!r} needs root: an image folder, a .tar(.gz), a .zip or a .npz")
        return _open_images(Path(root), size)
    if name == "digits" and root is not None:
        raise DataError(
            f"digits come with scikit-learn and need no root (got {root}); use name 'folder' for a path"
        )
    if not dataset.archives:
        return _open_function(name, dataset, root, size)
    files = locate_official(name, dataset, None if root is None else Path(root))
    if files is not None:
        return _open_official(name, dataset, files, size)
    source = _open_images(Path(str(root)), size)
    expected, actual = dataset.class_names, source.entry.class_names
    if expected is not None and len(actual) != len(expected):
        raise DataError(
            f"{root}: {len(actual)} classes, but {name} has {len(expected)}; use name 'folder' for other data"
        )
    return source


def _open_function(
    name: str, dataset: catalogue.Dataset, root: str | Path | None, size: int | None
) -> _Source:
    """Reads a data set by its function. Only this package's functions are cached, since their results never change."""

    def read() -> Contents:
        try:
            content = call_registered(
                f"data set {name!r}", _reader(dataset), None if root is None else Path(root)
            )
        except OSError as error:
            raise DataError(f"{name}: its function cannot read its files: {error}") from error
        arrays = as_arrays(content, name)
        shapes = {images.shape[1:] for images, _ in arrays.parts.values()}
        if dataset.image_shape is not None and shapes != {dataset.image_shape}:
            raise DataError(
                f"{name}: its images have shape {shapes.pop()}, but its catalogue entry states {dataset.image_shape}"
            )
        return arrays_contents(arrays, dataset.class_names, size, name)

    if isinstance(dataset.read, str) and dataset.read.startswith("trilemma."):
        return _cached(name, name, size, read, name)
    contents = read()
    images = np.empty((len(contents.labels), *contents.shape), np.uint8)
    contents.fill(images)
    entry = Entry(
        images, contents.labels, contents.parts, contents.class_names, contents.identity, contents.native
    )
    resized = size is not None and entry.native != (size, size)
    return _Source(entry, name + (f"@{size}" if resized else ""), name)


def _reader(dataset: catalogue.Dataset) -> Callable[[Any], Any]:
    """The function that reads the data set."""
    if callable(dataset.read):
        return dataset.read
    read: Callable[[Any], Any] = import_object(dataset.read)
    return read


def _open_official(name: str, official: catalogue.Dataset, files: list[Path], size: int | None) -> _Source:
    """Decodes the official archives of a data set, after checking their checksums."""

    def read() -> Contents:
        for file, archive in zip(files, official.archives, strict=True):
            verify_checksum(file, archive.checksum)
        return arrays_contents(_reader(official)(files), official.class_names, size, str(files[0].parent))

    content = name + "".join(file_sha256(file) for file in files)
    return _cached(name, content, size, read, str(files[0].parent))


def _open_images(root: Path, size: int | None) -> _Source:
    """Decodes an image folder, archives of image files, or an npz file."""
    sources = locate_images(root)
    where = str(root)
    if sources[0][1].is_dir():
        return _cached(
            None, folder_state(root), size, lambda: image_files_contents(sources, size, False, where), where
        )
    hashes = [file_sha256(path) for _, path in sources]
    content = "".join(f"{split} {digest}" for (split, _), digest in zip(sources, hashes, strict=True))
    if sources[0][1].suffix.lower() == ".npz":
        npz = sources[0][1]
        return _cached(
            None, "npz" + content, size, lambda: arrays_contents(read_npz(npz), None, size, where), where
        )
    packs = {catalogue.PACKS.get(digest) for digest in hashes}
    pack = packs.pop() if len(packs) == 1 else None
    numbered = pack is not None and pack.numbered
    known = None if pack is None else pack.name
    return _cached(known, content, size, lambda: image_files_contents(sources, size, numbered, where), where)


def _cached(
    name: str | None, content: str, size: int | None, read: Callable[[], Contents], where: str
) -> _Source:
    """The source with this ``content`` from the decode cache, into which ``read`` decodes it if needed.

    Args:
        name: name of its image sets; ``None`` for ``imagefolder:`` and a hash of the content.
        content: identifies the source in the key of the cache entry.
        size: side in pixels to which images are resized, or ``None``.
        read: reads the source.
        where: path or name, for messages.

    Raises:
        DataError: ``size`` is below 1, or the source cannot be read.
    """
    if size is not None and size < 1:
        raise DataError(f"size is {size}; give the side of an image in pixels, 1 or more")
    key = hashlib.sha256(f"{FORMAT} {size} {content}".encode()).hexdigest()
    entry = cached(key, read)
    resized = size is not None and entry.native != (size, size)
    full_name = (name or f"imagefolder:{entry.identity[:12]}") + (f"@{size}" if resized else "")
    return _Source(entry, full_name, where)


def _renumber(images: ImageSet, class_names: tuple[str, ...]) -> ImageSet:
    """The image set with labels renumbered to the order of ``class_names``, matched by name."""
    if unknown := [name for name in images.class_names if name not in class_names]:
        raise DataError(
            f"{images.name}: class {unknown[0]!r} is none of the classifier's {len(class_names)} classes; "
            f"rename its folder.{nearest(unknown[0], class_names)}"
        )
    table = torch.tensor([class_names.index(name) for name in images.class_names])
    return dataclasses.replace(images, labels=table[images.labels], class_names=class_names)
