"""Images given in Python: arrays and lists, a ``Dataset``, a ``DataLoader``, or anything that is iterated like them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from trilemma.data.arrays import tensor_set
from trilemma.data.image_set import ImageSet
from trilemma.data.pictures import as_array
from trilemma.errors import DataError, TrilemmaError

_FORMS = "give a name, a path, (images, labels), an ImageSet, or a Dataset or DataLoader of (image, label)"


def given_images(data: object, split: str, class_names: Sequence[str] | None) -> ImageSet:
    """Converts images and labels in memory, or those that an iteration yields, to an image set.

    Args:
        data: ``(images, labels)``; or a map-style ``Dataset`` of (image, label), a list of such pairs, an
            ``IterableDataset``, or a ``DataLoader``, whose batches are (images, labels). An image is a tensor
            ``[C, H, W]``; an array ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` with C 1 or 3; a PIL image; or a list of
            numbers. Values are uint8, or floating point in [0, 1]; all images have one shape. Images of a batch have
            one more dimension, or are a list.
        split: the split that the images belong to.
        class_names: in label order; those that the data set has in ``classes`` come first. Without either, the numbers
            0 to the largest label.

    Returns:
        The images in the order of the data.

    Raises:
        DataError: another type, an exception of the data set, or images or labels of a wrong type, shape or range.
    """
    if _is_pair(data):
        first, second = data
        return tensor_set(_batch(first), _labels(second), split=split, class_names=class_names)
    parts = [_part(number, item) for number, item in enumerate(_items(data))]
    if not parts:
        raise DataError(f"data: the {type(data).__name__} is empty; {_FORMS}")
    images = _joined([images for images, _ in parts])
    labels = torch.cat([labels for _, labels in parts])
    names = _names_of(data) or class_names
    converted = tensor_set(images, labels, split=split, class_names=names)
    return dataclasses.replace(converted, selection=_selection(data, len(converted)))


def _is_pair(data: object) -> TypeGuard[Sequence[Any]]:
    """Whether ``data`` is (images, labels) rather than a list of two pairs (image, label)."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    return not all(isinstance(item, tuple | list) and len(item) == 2 and _is_label(item[1]) for item in data)


def _is_label(value: object) -> bool:
    """Whether a value is a single number."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, int | float | np.number)


def _items(data: object) -> Iterator[Any]:
    """The items of a data set or loader; an exception that it raises becomes a :class:`DataError`."""
    kind = type(data).__name__
    if isinstance(data, Tensor | np.ndarray | str | bytes | dict | Iterator):
        again = " that can be read only once" if isinstance(data, Iterator) else ""
        raise DataError(f"data: got a {kind}{again}; {_FORMS}")
    try:
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            yield from (data[index] for index in range(len(data)))
        elif hasattr(data, "__iter__"):
            yield from data
        else:
            raise DataError(f"data: got a {kind}; {_FORMS}")
    except TrilemmaError:
        raise
    # The code of a data set may raise anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"data: the {kind} raised {type(error).__name__}: {reason}") from error


def _part(number: int, item: Any) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, H, W]`` and labels ``[N]`` of an item, which is a pair (image, label) or a batch."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise DataError(
            f"data: item {number} is {what}; it must be (image, label), or (images, labels) of a batch"
        )
    images, labels = item
    if _is_label(labels):
        return _image(images)[None], _labels([labels])
    batch, several = _batch(images), _labels(labels)
    if len(batch) != len(several):
        raise DataError(f"data: item {number} has {len(batch)} images and {len(several)} labels")
    return batch, several


def _image(value: Any) -> Tensor:
    """An image as a tensor ``[C, H, W]``, its values unchanged."""
    if isinstance(value, Image.Image):
        return torch.from_numpy(as_array(value).copy())
    tensor = value if isinstance(value, Tensor) else _tensor(_channels_first(_array(value, "images"), 3))
    return tensor[None] if tensor.ndim == 2 else tensor


def _batch(value: Any) -> Tensor:
    """Images as a tensor ``[N, C, H, W]``, their values unchanged."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor | np.ndarray | Image.Image):
        return _joined([_image(image)[None] for image in value])
    array = _array(value, "images")
    return _tensor(array[:, None] if array.ndim == 3 else _channels_first(array, 4))


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts as one tensor; raises :class:`DataError` if they differ in shape or type."""
    for part in parts[1:]:
        if part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype:
            forms = [f"{one.dtype} {list(one.shape[1:])}" for one in (parts[0], part)]
            raise DataError(
                f"data: images of different form, {' and '.join(forms)}; make all of one size and type"
            )
    return torch.cat(parts)


def _channels_first(array: NDArray[Any], dimensions: int) -> NDArray[Any]:
    """An array whose last dimension of ``dimensions`` is 1 or 3 channels, with the channels before height and width."""
    if array.ndim == dimensions and array.shape[-1] in (1, 3):
        return np.moveaxis(array, -1, -3)
    return array


def _labels(value: Any) -> Tensor:
    """Labels as a tensor ``[N]``."""
    tensor = value if isinstance(value, Tensor) else _tensor(_array(value, "labels"))
    return tensor[:, 0] if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor


def _array(value: Any, what: str) -> NDArray[Any]:
    """A value as an array of numbers."""
    try:
        if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
            value = [one.tolist() for one in value]
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"data: {what} are lists of different lengths; make all of one shape") from None
    if array.dtype.kind not in "iufb":
        raise DataError(f"data: {what} are a {type(value).__name__} of {array.dtype}; give numbers")
    return array


def _tensor(array: NDArray[Any]) -> Tensor:
    # A copy: the array may be read-only, or in a byte order or a type that torch does not have.
    kind = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, np.int64 if kind.kind == "u" and kind.itemsize > 1 else kind))


def _names_of(data: object) -> tuple[str, ...] | None:
    """The texts in ``classes`` of a data set, of the data set of a loader, or of that of a subset."""
    while data is not None:
        names = getattr(data, "classes", None)
        if isinstance(names, tuple | list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
        data = getattr(data, "dataset", None)
    return None


def _selection(data: object, count: int) -> str:
    """How many images a loader yields of those of its data set, if these are not all."""
    if not isinstance(data, DataLoader) or not hasattr(data.dataset, "__len__"):
        return ""
    total = len(data.dataset)
    return "" if count == total else f"the DataLoader yields {count} of {total} images"
