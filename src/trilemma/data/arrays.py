"""Data sets given as arrays: results of the readers of official archives, ``.npz`` files, and a caller's tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trilemma.data.cache import Contents, Size
from trilemma.data.class_names import distinct_names, numbers
from trilemma.data.image_set import ImageSet, check_labels
from trilemma.data.layout import UNLABELLED, LayoutError
from trilemma.data.left_out import LeftOut
from trilemma.data.pictures import fit
from trilemma.errors import DataError
from trilemma.files import npz_names
from trilemma.files import read_npz as read_npz_arrays
from trilemma.limits import CLASSES

_NPZ_PAIRS = (
    ("all", "images", "labels"),
    *((split, f"x_{split}", f"y_{split}") for split in ("train", "val", "test")),
    *((split, f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")),
)
# Float images that are converted at once.
_PART = 1000
# The arrays of an npz file that may hold class names.
_NPZ_NAMES = ("class_names", "label_names")


@dataclass(frozen=True)
class Arrays:
    """A data set as arrays.

    Attributes:
        parts: split name to (images uint8 ``[N, C, H, W]``, labels int64 ``[N]``).
        class_names: in label order; ``None`` if the source has none.
        remarks: what the source has but is not read, one line per reason.
    """

    parts: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
    class_names: tuple[str, ...] | None
    remarks: tuple[str, ...] = ()


def arrays_contents(arrays: Arrays, class_names: tuple[str, ...] | None, size: Size, where: str) -> Contents:
    """Converts arrays to :class:`Contents` for the decode cache.

    Args:
        arrays: the data set.
        class_names: in label order; ``None`` for those of ``arrays``, or the class numbers if it has none.
        size: (height, width) to resize to, by the rules of :mod:`trilemma.data.pictures`; ``None`` to keep the size.
        where: the source, for messages.

    Raises:
        DataError: two classes of one name, labels out of range, or a class without an image in one of the splits.
    """
    labels = np.concatenate([part_labels for _, part_labels in arrays.parts.values()])
    names = class_names or arrays.class_names or numbers(_class_count(labels, where))
    names = distinct_names(names, where)
    spans, start, digest = {}, 0, hashlib.sha256()
    for split, (images, part_labels) in arrays.parts.items():
        check_labels(torch.from_numpy(part_labels), len(names), f"{where} ({split})")
        absent = sorted(set(range(len(names))) - set(part_labels.tolist()))
        if absent:
            raise DataError(
                f"{where}: class {names[absent[0]]!r} has no image in {split}; every split needs every class"
            )
        spans[split] = (start, start + len(images))
        start += len(images)
        digest.update(f"{split} {images.shape}".encode())
        digest.update(np.ascontiguousarray(images).tobytes() + part_labels.tobytes())
    channels, height, width = next(iter(arrays.parts.values()))[0].shape[1:]
    shape = (channels, *(size or (height, width)))

    def fill(out: NDArray[np.uint8]) -> None:
        for split, (first, last) in spans.items():
            images = arrays.parts[split][0]
            if images.shape[1:] == shape:
                out[first:last] = images
                continue
            for index, pixels in enumerate(images, start=first):
                picture = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
                out[index] = fit(picture, shape)

    return Contents(shape, labels, spans, names, digest.hexdigest(), (height, width), fill, arrays.remarks)


def _class_count(labels: NDArray[np.int64], where: str) -> int:
    """The number of classes of labels without names; raises :class:`DataError` if not every class can have an image."""
    count = int(labels.max(initial=-1)) + 1
    if count > len(labels):
        raise DataError(
            f"{where}: label {count - 1} of image {int(labels.argmax())} would be the last of {count:,} classes, but "
            f"there are {len(labels):,} images; number classes from 0 without gaps"
        )
    CLASSES.check(count, where)
    return count


def as_arrays(content: Arrays | Mapping[str, Any], where: str) -> Arrays:
    """Converts the return value of a data set's function to :class:`Arrays`, with the checks of :func:`read_npz`.

    Args:
        content: :class:`Arrays`, or a mapping from split name (``train``, ``val``, ``test``, or ``all`` alone) to
            ``(images, labels)``, optionally with ``class_names``.
        where: the data set, for messages.

    Raises:
        DataError: another type, an unknown split, or images or labels of a wrong type or shape.
    """
    if isinstance(content, Arrays):
        return content
    splits = ("train", "val", "test", "all")
    if (
        not isinstance(content, Mapping)
        or not set(content) - {"class_names"} <= set(splits)
        or not set(content) & set(splits)
    ):
        kind = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise DataError(
            f"{where}: its function returned {kind}; return {{split: (images, labels)}} of {', '.join(splits)}"
        )
    parts = {}
    for split in (split for split in splits if split in content):
        if not isinstance(content[split], tuple | list) or len(content[split]) != 2:
            raise DataError(f"{where}: {split} must be (images, labels), got {type(content[split]).__name__}")
        images, labels = (np.asarray(value) for value in content[split])
        images = _as_images(images, f"{where}: {split} images")
        parts[split] = (images, _as_labels(labels, len(images), f"{where}: {split} labels"))
    if len({images.shape[1:] for images, _ in parts.values()}) > 1:
        raise DataError(f"{where}: the splits have images of different shapes; make them equal")
    names = content.get("class_names")
    return Arrays(parts, None if names is None else distinct_names(names, where))


def read_npz(path: Path, labelled: bool = True) -> Arrays:
    """Reads a data set from an ``.npz`` file.

    The file has ``images`` and ``labels``; or ``x_train, y_train, x_test, y_test`` (also ``x_val, y_val``); or
    ``train_images, train_labels, test_images, test_labels`` (also ``val_``); and optionally ``class_names`` or
    ``label_names``, text or bytes.

    Images are uint8 0..255 or floating point in [0, 1] (rounded to 8 bits), shaped ``[N, H, W]``, ``[N, H, W,
    C]`` or ``[N, C, H, W]`` with 1 or 3 channels; labels are integers ``[N]`` or ``[N, 1]`` from 0. Pickled
    objects are refused.

    Args:
        path: the file.
        labelled: without labels, all images of the file are one class without splits.

    Raises:
        LayoutError: no labels.
        DataError: a damaged file, missing arrays, or a wrong type or shape.
    """
    try:
        stored = npz_names(path)
        found = [row for row in _NPZ_PAIRS if row[1] in stored and (row[2] in stored or not labelled)]
        if not found and not labelled and len(stored) == 1:
            # np.savez of one array without a name.
            found = [("all", stored[0], "")]
        used = {name for row in found for name in row[1:]} | set(_NPZ_NAMES)
        content = read_npz_arrays(path, tuple(used))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: truncated, damaged or pickled npz file ({error}); write it again"
        ) from error
    splits = [split for split, _, _ in found]
    if not found or len(set(splits)) < len(found) or ("all" in splits and len(found) > 1):
        raise LayoutError(
            f"{path}: arrays {sorted(stored)}; needs images and labels, or x_train, y_train, x_test, "
            "y_test, or train_images, train_labels, test_images, test_labels"
        )
    images = {split: _as_images(content[name], f"{path}: {name}") for split, name, _ in found}
    if len({part.shape[1:] for part in images.values()}) > 1:
        raise DataError(f"{path}: the splits have images of different shapes; make them equal")
    unread = LeftOut()
    unread.add("no array of images, labels or class names that is known", *sorted(set(stored) - used))
    if not labelled:
        everything = np.concatenate(list(images.values()))
        parts = {"all": (everything, np.zeros(len(everything), np.int64))}
        return Arrays(parts, (UNLABELLED,), unread.lines())
    parts = {
        split: (images[split], _as_labels(content[name], len(images[split]), f"{path}: {name}"))
        for split, _, name in found
    }
    return Arrays(parts, _names(content, path), unread.lines())


def _names(content: Mapping[str, NDArray[Any]], path: Path) -> tuple[str, ...] | None:
    """The class names of an npz file, ``None`` if it has none.

    Raises:
        DataError: two arrays of names, no list of texts, or two classes of one name.
    """
    stored = [name for name in _NPZ_NAMES if name in content]
    if not stored:
        return None
    names = content[stored[0]]
    if len(stored) > 1 or names.ndim != 1 or names.dtype.kind not in "SU":
        raise DataError(
            f"{path}: {' and '.join(stored)}: {names.dtype} {names.shape}; needs one list of texts, one per class"
        )
    return distinct_names(names.tolist(), str(path))


def _as_images(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Images as uint8 ``[N, C, H, W]``; raises :class:`DataError` for another type or shape."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise DataError(
            f"{where}: shape {array.shape}; needs [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3"
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise DataError(f"{where}: floating-point images must be in [0, 1]; divide by 255 or store uint8")
        pixels = np.empty(array.shape, np.uint8)
        # Part by part, since intermediate values take eight times the memory of the result.
        for start in range(0, len(array), _PART):
            pixels[start : start + _PART] = (array[start : start + _PART] * 255).round()
        return pixels
    if array.dtype != np.uint8:
        raise DataError(f"{where}: type {array.dtype}; store uint8 0..255 or floating point in [0, 1]")
    return array


def _as_labels(array: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Labels as int64 ``[count]``; raises :class:`DataError` for another type or shape."""
    labels = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(f"{where}: {array.dtype} {array.shape}; needs {count} integers, one per image")
    return labels.astype(np.int64)


# How far float images may lie outside [0, 1]; they are clipped to it.
RANGE_TOLERANCE = 1e-4


def tensor_set(images: Tensor, labels: Tensor, split: str, class_names: Sequence[str] | None) -> ImageSet:
    """Returns an :class:`ImageSet` of tensors.

    Its name is ``tensors:`` and the first 12 digits of the SHA-256 of the content.

    Args:
        images: ``[N, C, H, W]``, uint8, or float in [0, 1]; N at least 1.
        labels: integers ``[N]``.
        split: the split that the images belong to.
        class_names: in label order; without them, the numbers 0 to the largest label.

    Raises:
        DataError: wrong type, shape or range, NaN, or labels out of range.
    """
    if (
        images.ndim != 4
        or len(images) == 0
        or not (images.dtype == torch.uint8 or images.is_floating_point())
    ):
        raise DataError(
            f"images are {images.dtype} {list(images.shape)}; needs uint8 or float [N, C, H, W], N >= 1"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"labels are {labels.dtype}; needs integers, one per image")
    images, labels = images.detach().cpu().contiguous(), labels.detach().cpu().long()
    if images.dtype != torch.uint8:
        low, high = images.min().item(), images.max().item()
        # The comparisons are false for NaN as well.
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
            remedy = "divide by 255" if low >= 0 else "leave normalisation to the Classifier (mean, std)"
            raise DataError(
                f"images range from {low:g} to {high:g}; float images must be in [0, 1], without NaN: {remedy}"
            )
        images = images.float().clamp(0, 1)
    if not class_names:
        CLASSES.check(int(labels.max()) + 1, "labels")
    names = tuple(class_names) if class_names else numbers(max(1, int(labels.max()) + 1))
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    return ImageSet(images, labels, names, f"tensors:{digest[:12]}", split)
