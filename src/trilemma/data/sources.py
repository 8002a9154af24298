"""Loading image sets by data set name or path: :func:`load_splits` for training, :func:`load_images` for evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import math
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
from trilemma.data.arrays import arrays_contents, as_arrays, read_npz
from trilemma.data.cache import FORMAT, Contents, Entry, Size, cached, in_memory
from trilemma.data.class_names import match_classes, names_by_order, numbers
from trilemma.data.containers import check_kind
from trilemma.data.download import verify_checksum
from trilemma.data.given import given_images
from trilemma.data.image_files import image_files_contents
from trilemma.data.image_set import ImageSet, Splits, source_name
from trilemma.data.layout import LayoutError
from trilemma.data.left_out import print_remarks
from trilemma.data.locate import folder_state, locate_images, locate_official
from trilemma.data.shards import BY_INDEX, ShardFolder, is_shard_folder, webdataset
from trilemma.data.splitting import stratified_order, stratified_split
from trilemma.data.stream import WINDOW, ShardStream, fill
from trilemma.errors import DataError, nearest
from trilemma.files import file_sha256
from trilemma.limits import IMAGE_PIXELS
from trilemma.printing import quoted
from trilemma.units import MOST_PIXELS, count, number, seed_number, whole_number

# Side in pixels, or (height, width).
_Side = int | tuple[int, int] | None
# The test part of a source without splits. Not configurable, so that it is the same in training and evaluation.
TEST_FRACTION = 0.2
# Beginning of the names of image sets that are named by their content.
BY_CONTENT = "imagefolder:"


def load_splits(
    name: str,
    root: str | Path | None = None,
    size: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    train_images: int | None = None,
    window: int | None = None,
    resident: int | None = None,
) -> Splits:
    """Loads the train, held-out and test parts of a data set.

    - ``digits``: fixed parts of 1,200 / 200 / 397 images; ``held_out`` and ``seed`` have no effect.
    - ``cifar10``, ``cifar100``, ``mnist``, ``fashion-mnist``, ``svhn``: the official archives, downloaded
      into the cache folder, or found in ``root``. ``root`` may hold images instead, as for ``folder``.
    - ``folder``: ``root`` is an image folder, ``.tar``, ``.tar.gz``, ``.tgz``, ``.zip`` or ``.npz``, or a
      folder with one of these archives, or with one per split, named ``train*``, ``val*``, ``test*`` (see
      :data:`trilemma.data.layout.SPLIT_NAMES`).
      Layouts: :mod:`trilemma.data.layout`; sizes and channels: :mod:`trilemma.data.image_files`; single images:
      :mod:`trilemma.data.pictures`; arrays: :func:`trilemma.data.arrays.read_npz`.

    - ``shards``: ``root`` is a folder of tar shards (:mod:`trilemma.data.shards`). All training images are the stream
      of the result; its train part has at most ``resident`` of them, a fixed stratified choice, and so has the
      held-out part if it is a fraction of the train part.

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
        window: of shards, number of places over which an image is shuffled; ``None`` for 10,000.
        resident: of shards, the largest number of training and of held-out images that are decoded; ``None`` for
            20,000.

    Raises:
        DataError: the source cannot be read, or an argument is invalid.
    """
    seed, size = seed_number("data", seed), _checked_side(size)
    if not 0 < number("data", "held_out", held_out) < 1:
        raise DataError(f"held_out is {held_out}; give a fraction of the train part, between 0 and 1")
    source = _open_named(name, root, size)
    shards = source if isinstance(source, _ShardSource) else None
    if shards is not None:
        source = shards = dataclasses.replace(shards, resident=resident or catalogue.RESIDENT)
    elif (window, resident) != (None, None):
        key = "resident" if window is None else "window"
        raise DataError(f"data.{key} is for tar shards, not for {name!r}; remove it, or use data.name shards")
    parts = source.divide(held_out, seed)
    missing = [split for split in ("train", "test") if split not in parts]
    if missing:
        raise DataError(
            f"{source.where}: has no {missing[0]} part; add a folder or archive named {missing[0]}"
        )
    print_remarks(source.where, source.entry.remarks)
    if shards is not None:
        return shards.splits(parts, train_images, window)
    train, held, test = (source.image_set(split, parts[split]) for split in ("train", "held-out", "test"))
    splits = Splits(train, held, test)
    for images in (splits.held_out, splits.test):
        if len(images) == 0:
            raise DataError(
                f"{source.where}: too few images for a {images.split} part; add images to every class"
            )
    if train_images is None:
        return splits
    return dataclasses.replace(splits, train=_shortened(splits.train, train_images))


def _shortened(train: ImageSet, images: int) -> ImageSet:
    """The first ``images`` images of the train part, with ``[:images]`` appended to the name.

    Raises:
        DataError: ``images`` is below the number of classes or above the number of images.
    """
    _check_count(images, train.num_classes, len(train), train.name)
    return dataclasses.replace(train.first(images), name=f"{train.name}[:{images}]")


def _check_count(images: int, classes: int, most: int, name: str) -> None:
    """Raises :class:`DataError` unless ``images`` is a number of training images that can be chosen."""
    if not classes <= whole_number("data", "train_images", images) <= most:
        raise DataError(
            f"train_images is {quoted(images)}; {name} has {most:,} training images in {classes} classes: give a "
            f"number from {classes} to {most}, or none for all"
        )


def load_images(
    source: object,
    split: str | None = None,
    root: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    trained_on: str | None = None,
) -> ImageSet:
    """Loads images to evaluate on: one part of a data set, or images in memory.

    By default these are the test part of a named data set or of a path with splits, and of a path without splits all
    images. Training however keeps a fixed stratified fifth of a source without splits for tests
    (:func:`load_splits`), which is its ``"test"`` part: that part is the default too if ``trained_on`` says that the
    classifier was trained on the same images, and of a data set's name with a ``root``, by which a run names its
    data. Of a path with training images only, these are used. ``selection`` of the result says what was done.

    Args:
        source: the name of a data set (it has precedence over a path of the same name), a path; or images and labels in
            memory, a ``Dataset`` or a ``DataLoader``, as for :func:`trilemma.data.given.given_images`. Float images are
            not rounded.
        split: ``"train"``, ``"held-out"``, ``"test"`` or ``"all"``; ``None`` for the default above. The name of the
            split of images in memory is ``"all"`` by default.
        root: path of a named data set.
        size: side in pixels to which every image is resized, or (height, width); not for images in memory.
        class_names: the classes in the classifier's label order. Labels of a name or a path are matched to them by
            name, see :func:`trilemma.data.class_names.match_classes`, and so are those of a data set in memory with
            ``classes``; for others these are only the names.
        trained_on: name of the image set that the classifier was trained on.

    Raises:
        DataError: the source cannot be read, an argument is invalid, or the images at ``root`` have no splits and are
            not those of ``trained_on``, so that its training images are not known.
    """
    if not isinstance(source, str | Path):
        if size is not None or root is not None:
            raise DataError(
                "size and root are for named data and paths only; resize the tensors and omit both"
            )
        given = given_images(source, split or "all", class_names)
        return given if class_names is None else in_class_order(given, class_names)
    named = isinstance(source, str) and source in DATASETS
    if named:
        opened = _open_named(str(source), root, _checked_side(size))
    elif Path(source).exists():
        if root is not None:
            raise DataError(f"{source}: a path needs no root (got {root}); root goes with a data set's name")
        opened = _open_images(Path(source), _checked_side(size))
    else:
        raise _unknown(str(source))
    print_remarks(opened.where, opened.entry.remarks)
    images = opened.to_evaluate(named, trained_on) if split is None else opened.part(split)
    return images if class_names is None else in_class_order(images, class_names)


def load_unlabelled(source: str | Path, split: str, size: int | tuple[int, int] | None = None) -> ImageSet:
    """Loads images whose labels do not matter, in any arrangement.

    Images that are arranged by class, as :func:`load_images` requires it, have their labels and class names. All others
    are one class, and an npz file needs no labels.

    Args:
        source, size: as for :func:`load_images`.
        split: the part of a named data set, such as ``"test"``; of a path, all images are used.

    Raises:
        DataError: the source cannot be read.
    """
    try:
        return load_images(source, split if source in DATASETS else "all", size=size)
    except LayoutError:
        opened = _open_images(Path(source), _checked_side(size), labelled=False)
        print_remarks(opened.where, opened.entry.remarks)
        return opened.part("all")


def stored_parts(source: str, root: str | Path | None = None) -> dict[str, ImageSet]:
    """The parts of a source as it stores them, none held out: ``train``, ``val``, ``test``, or ``all``.

    Args:
        source: name of a data set, or a path.
        root: path of a named data set.

    Raises:
        DataError: the source cannot be read.
    """
    opened = _open_named(source, root, None) if source in DATASETS else _open_images(Path(source), None)
    print_remarks(opened.where, opened.entry.remarks)
    return {split: opened.image_set(split, slice(*span)) for split, span in opened.entry.parts.items()}


def in_class_order(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """The image set with labels in the order of a classifier's classes; ``selection`` says if names do not decide it.

    It is returned unchanged if the numbers of classes differ and the classifier has no class names.

    Raises:
        DataError: a class of the data is none of the classifier's.
    """
    match = match_classes(images.class_names, class_names, images.name)
    if match is None or images.class_names == tuple(class_names):
        return images
    unnamed = tuple(class_names) == numbers(len(class_names))
    labels = torch.tensor(match.labels)
    names = tuple(class_names)
    if match.by and unnamed:
        names, _ = names_by_order(images.class_names)
    selection = ", ".join(filter(None, (images.selection, match.by)))
    return dataclasses.replace(images, labels=labels[images.labels], class_names=names, selection=selection)


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

    def image_set(self, split: str, index: slice | Tensor, selection: str = "") -> ImageSet:
        """The images at ``index`` as an image set."""
        entry = self.entry
        images, labels = torch.from_numpy(entry.images), torch.from_numpy(entry.labels)
        return ImageSet(
            images[index], labels[index], entry.class_names, self.name, split, selection, entry.remarks
        )

    def part(self, split: str) -> ImageSet:
        """The images of a part; raises :class:`DataError` if there is no such part."""
        parts = self.divide()
        if split not in parts:
            raise DataError(f"{self.where}: has no {split!r} part; it has {', '.join(parts)}")
        return self.image_set(split, parts[split])

    def to_evaluate(self, named: bool, trained_on: str | None) -> ImageSet:
        """The images to evaluate on, by the rules of :func:`load_images`; ``named``: read by a data set's name."""
        spans = self.entry.parts
        if "test" in spans or "val" in spans:
            return self.part("test")
        same = trained_on is not None and source_name(trained_on) == source_name(self.name)
        by_content = any(
            self.name.startswith(prefix) and str(trained_on).startswith(prefix)
            for prefix in (BY_CONTENT, BY_INDEX)
        )
        if named and by_content and not same:
            raise DataError(
                f"{self.where}: has no splits, and its images changed since the training ({trained_on}, now "
                f"{self.name}), so that training and test images cannot be told apart; restore them, or evaluate on "
                "a path of other images"
            )
        if named or same:
            return dataclasses.replace(
                self.part("test"),
                selection="the stratified fifth that training leaves out of a source without a test split",
            )
        (split, span), *_ = spans.items()
        return self.image_set(
            split, slice(*span), "source without splits" if split == "all" else "source without a test split"
        )


@dataclass(frozen=True)
class _ShardSource(_Source):
    """A folder of shards: its ``entry`` has labels, but no images; those of a part are decoded into the cache.

    Attributes:
        folder: the shards.
        shape: (C, H, W) of the decoded images.
        resident: the largest number of training images, and of held-out ones, that are decoded.
    """

    folder: ShardFolder
    shape: tuple[int, int, int]
    resident: int = catalogue.RESIDENT

    def divide(self, held_out: float = 0.1, seed: int = 0) -> dict[str, slice | Tensor]:
        first, last = self.entry.parts.get("train", (0, len(self.entry.labels)))
        return super().divide(min(held_out, self.resident / (last - first)), seed)

    def image_set(self, split: str, index: slice | Tensor, selection: str = "") -> ImageSet:
        positions = torch.arange(len(self.entry.labels))[index]
        digest = hashlib.sha256(positions.numpy().tobytes()).hexdigest()
        key = f"{FORMAT} shards {self.shape} {self.entry.identity} {digest}"
        labels = self.entry.labels[positions.numpy()]
        where = f"{self.where} ({split})"
        contents = Contents(
            self.shape, labels, {split: (0, len(labels))}, self.entry.class_names, self.entry.identity,
            self.entry.native, lambda out: fill(self.folder, positions.tolist(), out, f"decoding {where}"),
        )  # fmt: skip
        entry = cached(hashlib.sha256(key.encode()).hexdigest(), lambda: contents)
        return ImageSet(
            torch.from_numpy(entry.images), torch.from_numpy(entry.labels), entry.class_names, self.name, split,
            selection,
        )  # fmt: skip

    def splits(
        self, parts: dict[str, slice | Tensor], train_images: int | None, window: int | None
    ) -> Splits:
        """The splits with their stream; arguments as of :func:`load_splits`."""
        # Before a run begins, whose first shard may be read later.
        webdataset("tariterators")
        classes, everything = len(self.entry.class_names), torch.arange(len(self.entry.labels))
        positions, name = everything[parts["train"]], self.name
        labels = torch.from_numpy(self.entry.labels)
        if train_images is not None:
            _check_count(train_images, classes, len(positions), name)
            chosen = stratified_order(labels[positions])[:train_images].sort().values
            positions, name = positions[chosen], f"{name}[:{train_images}]"
        if self.resident < classes:
            raise DataError(
                f"data.resident is {self.resident}; {self.where} has {classes} classes, give at least one image of each"
            )
        stream = ShardStream(self.folder, positions, labels[positions], self.shape, name, window or WINDOW)
        few = stratified_order(stream.labels)[: self.resident].sort().values
        selection = "" if len(few) == len(stream) else f"{len(few):,} of the {len(stream):,} training images"
        train = dataclasses.replace(self.image_set("train", positions[few], selection), name=name)
        held_out, test = (self.image_set(split, parts[split]) for split in ("held-out", "test"))
        return Splits(train, held_out, test, stream)


def _open_shards(root: Path, size: _Side) -> _ShardSource:
    """Opens a folder of shards by its index; no shard is read."""
    folder = ShardFolder.open(root)
    index = folder.index
    height, width = index.size
    shape = (index.channels, *(_shape(size) or (height, width)))
    IMAGE_PIXELS.check(math.prod(shape[1:]), f"size {size}")
    labels = np.array([label for shard in index.shards for label in shard.labels], np.int64)
    entry = Entry(
        np.empty((0, *shape), np.uint8), labels, dict(index.spans), tuple(index.class_names), index.identity,
        (height, width), (),
    )  # fmt: skip
    name = f"{BY_INDEX}{index.identity[:12]}{_resized(entry, size)}"
    return _ShardSource(entry, name, str(root), folder, shape)


def _open_named(name: str, root: str | Path | None, size: _Side) -> _Source:
    """Decodes a data set of the registry."""
    if name not in DATASETS:
        # A path object is no name either.
        raise _unknown(str(name))
    dataset = catalogue.find_dataset(name)
    if dataset.streamed:
        if root is None:
            raise DataError(
                f"data set {name!r} needs root: a folder of tar shards (trilemma shards SOURCE --out DIR writes one)"
            )
        return _open_shards(Path(root), size)
    if not dataset.read:
        if root is None:
            raise DataError(f"data set {name!r} needs root: an image folder, a .tar(.gz), a .zip or a .npz")
        return _open_images(Path(root), size)
    if name == "digits" and root is not None:
        raise DataError(
            f"digits are in this package and need no root (got {root}); use name 'folder' for a path"
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


def _open_function(name: str, dataset: catalogue.Dataset, root: str | Path | None, size: _Side) -> _Source:
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
        return arrays_contents(arrays, dataset.class_names, _shape(size), name)

    if isinstance(dataset.read, str) and dataset.read.startswith("trilemma."):
        return _cached(name, name, size, read, name)
    entry = in_memory(read())
    return _Source(entry, name + _resized(entry, size), name)


def _reader(dataset: catalogue.Dataset) -> Callable[[Any], Any]:
    """The function that reads the data set."""
    if callable(dataset.read):
        return dataset.read
    read: Callable[[Any], Any] = import_object(dataset.read)
    return read


def _open_official(name: str, official: catalogue.Dataset, files: list[Path], size: _Side) -> _Source:
    """Decodes the official archives of a data set, after checking their checksums."""

    def read() -> Contents:
        for file, archive in zip(files, official.archives, strict=True):
            verify_checksum(file, archive.checksum)
        return arrays_contents(
            _reader(official)(files), official.class_names, _shape(size), str(files[0].parent)
        )

    content = name + "".join(file_sha256(file) for file in files)
    return _cached(name, content, size, read, str(files[0].parent))


def _open_images(root: Path, size: _Side, labelled: bool = True) -> _Source:
    """Decodes an image folder, archives of image files, or an npz file; opens a folder of shards."""
    if is_shard_folder(root):
        return _open_shards(root, size)
    sources, left_out = locate_images(root, labelled)
    where, kind = str(root), "" if labelled else "unlabelled "
    paths = [path for _, path in sources]

    def opened(name: str | None, content: str, read: Callable[[], Contents]) -> _Source:
        return _cached(name, kind + content, size, read, where, left_out.lines())

    def files(sources: list[tuple[str, Path]], numbered: bool = False) -> Contents:
        return image_files_contents(sources, _shape(size), numbered, where, labelled)

    if any(path.is_dir() for path in paths):
        return opened(None, folder_state(root), lambda: files(sources))
    for path in paths:
        check_kind(path)
    hashes = [file_sha256(path) for path in paths]
    if paths[0].suffix.lower() == ".npz":
        return opened(
            None,
            f"npz{hashes[0]}",
            lambda: arrays_contents(read_npz(paths[0], labelled), None, _shape(size), where),
        )
    packs = [catalogue.PACKS.get(digest) for digest in hashes]
    # The split of a known archive is known under any file name.
    sources = [
        (pack.split if pack is not None and split == "all" else split, path)
        for (split, path), pack in zip(sources, packs, strict=True)
    ]
    content = "".join(f"{split} {digest}" for (split, _), digest in zip(sources, hashes, strict=True))
    known = {pack and (pack.name, pack.numbered) for pack in packs}
    name, numbered = (known.pop() if len(known) == 1 else None) or (None, False)
    return opened(name, content, lambda: files(sources, numbered))


def _cached(
    name: str | None,
    content: str,
    size: _Side,
    read: Callable[[], Contents],
    where: str,
    left_out: tuple[str, ...] = (),
) -> _Source:
    """The source with this ``content`` from the decode cache, into which ``read`` decodes it if needed.

    Args:
        name: name of its image sets; ``None`` for ``imagefolder:`` and a hash of the content.
        content: identifies the source in the key of the cache entry.
        size: as in :func:`load_images`.
        read: reads the source.
        where: path or name, for messages.
        left_out: what is beside the source and not counted.

    Raises:
        DataError: ``size`` is below 1, or the source cannot be read.
    """
    if min(_shape(size) or (1,)) < 1:
        raise DataError(f"size is {size}; give the side of an image in pixels, 1 or more")
    IMAGE_PIXELS.check(math.prod(_shape(size) or (1,)), f"size {size}")
    # File names that are no UTF-8 have surrogates.
    key = f"{FORMAT} {_shape(size)} {content}".encode("utf-8", "surrogateescape")
    entry = cached(hashlib.sha256(key).hexdigest(), read)
    entry = dataclasses.replace(entry, remarks=left_out + entry.remarks)
    full_name = name or f"{BY_CONTENT}{entry.identity[:12]}"
    return _Source(entry, full_name + _resized(entry, size), where)


def _checked_side(size: Any) -> Any:
    """A side in pixels, or height and width, as integers.

    Raises:
        ConfigError: something else, or a side above 8192.
    """
    if isinstance(size, tuple):
        height, width = size
        return count("data", "size", height, 1, MOST_PIXELS), count("data", "size", width, 1, MOST_PIXELS)
    return None if size is None else count("data", "size", size, 1, MOST_PIXELS)


def _shape(size: _Side) -> Size:
    """(height, width) of a side in pixels."""
    return (size, size) if isinstance(size, int) else size


def _resized(entry: Entry, size: _Side) -> str:
    """The end of the name of resized images: ``@SIZE``, ``@HEIGHTxWIDTH``, or nothing."""
    shape = _shape(size)
    if shape is None or entry.native == shape:
        return ""
    return f"@{shape[0]}" if shape[0] == shape[1] else f"@{shape[0]}x{shape[1]}"
