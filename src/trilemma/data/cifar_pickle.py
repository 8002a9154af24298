"""CIFAR-10 and CIFAR-100 as released: a tar.gz of Python pickles, read without ever executing one.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009 ("python version").
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilemma.data.arrays import Arrays
from trilemma.errors import DataError

# What an array pickle needs, by the name it has in old and new releases of numpy.
_ALLOWED: dict[str, Any] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(0).__reduce__()[0],
}
_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray"}


class _ArraysOnly(pickle.Unpickler):
    """Builds numbers, strings, lists, dictionaries and numpy arrays; any other name is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_cifar10(files: Sequence[Path]) -> Arrays:
    """``cifar-10-python.tar.gz``: five training batches and a test batch, in the official order."""
    batches = _read_members(files[0], [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"])
    pairs = [_images_and_labels(batch, b"labels", files[0]) for batch in batches]
    train = (np.concatenate([pair[0] for pair in pairs[:5]]), np.concatenate([pair[1] for pair in pairs[:5]]))
    return Arrays({"train": train, "test": pairs[5]}, None)


def read_cifar100(files: Sequence[Path]) -> Arrays:
    """``cifar-100-python.tar.gz``, fine labels; class names come from its ``meta``."""
    train, test, meta = _read_members(files[0], ["train", "test", "meta"])
    names = meta.get(b"fine_label_names") if isinstance(meta, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{files[0]}: no class names in its meta file; get the official archive again")
    parts = {"train": _images_and_labels(train, b"fine_labels", files[0])}
    parts["test"] = _images_and_labels(test, b"fine_labels", files[0])
    return Arrays(parts, tuple(name.decode("ascii", "replace") for name in names))


def _read_members(path: Path, names: list[str]) -> list[Any]:
    found: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                stream = archive.extractfile(member) if name in names else None
                if stream is not None:
                    found[name] = load_arrays(stream.read(), f"{path}:{member.name}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}); get it again") from error
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{path}: {missing[0]} is missing; get the official archive again")
    return [found[name] for name in names]


def load_arrays(data: bytes, where: str) -> Any:
    """Unpickle plain values and numpy arrays; strings of Python 2 come out as bytes.

    Raises:
        DataError: the pickle is damaged or asks for anything else, such as a function to call.
    """
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything; all of it means the same
        raise DataError(
            f"{where}: not a pickle of plain arrays ({error}); get the official archive"
        ) from error


def _images_and_labels(batch: Any, key: bytes, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(key) if isinstance(batch, dict) else None
    if (
        isinstance(images, np.ndarray)
        and isinstance(labels, list)
        and images.dtype == np.uint8
        and images.shape == (len(labels), 3072)
        and all(isinstance(label, int) for label in labels)
    ):
        return images.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
    raise DataError(
        f"{path}: a batch without uint8 data [N, 3072] and N labels; get the official archive again"
    )
