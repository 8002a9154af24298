"""Readers of the official releases: digits, MNIST's IDX files, CIFAR pickles, SVHN's MATLAB files."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trilemma.data.arrays import Arrays
from trilemma.data.containers import decompressed
from trilemma.data.splitting import stratified_split
from trilemma.errors import DataError
from trilemma.limits import check_expansion

TEST, HELD_OUT = 397, 200


def read_digits(root: Path | None = None) -> Arrays:
    """Returns the 1,797 digits of this package with fixed stratified splits; pixels 0..16 become round(v * 255 / 16).

    Source: test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0; in the order of scikit-learn's
    ``load_digits``.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as archive:
        levels, labels = archive["images"], archive["labels"].astype(np.int64)
    images = np.round(levels.astype(np.float64) * (255 / 16)).astype(np.uint8)[:, None]
    rest, test = stratified_split(torch.from_numpy(labels), TEST)
    train, held_out = stratified_split(torch.from_numpy(labels)[rest], HELD_OUT)
    indices = {"train": rest[train].numpy(), "val": rest[held_out].numpy(), "test": test.numpy()}
    return Arrays({split: (images[index], labels[index]) for split, index in indices.items()}, None)


def parse_idx(data: bytes, where: str) -> NDArray[np.uint8]:
    """Parses an IDX file of unsigned bytes and returns an array of the shape in its header.

    Raises:
        DataError: another magic number, or another number of bytes than the header requires.
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(f"{where}: not an IDX file of unsigned bytes; get the official archive again")
    dimensions = data[3]
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:header]) if len(data) >= header else ()
    expected = header + int(np.prod(shape, dtype=object))
    if not shape or len(data) != expected:
        raise DataError(
            f"{where}: truncated or damaged IDX file ({len(data)} bytes, expected {expected}); get it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of a gzipped IDX file; raises :class:`DataError` if it is damaged or has other dimensions."""
    try:
        data = decompressed(path)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}); get it again") from error
    array = parse_idx(data, str(path))
    if array.ndim != dimensions:
        raise DataError(
            f"{path}: {array.ndim} dimensions, expected {dimensions}; get the official archive again"
        )
    return array


def read_idx_set(files: Sequence[Path]) -> Arrays:
    """Reads MNIST-like data: ``files`` are train images, train labels, test images, test labels; one grey channel."""
    parts = {}
    for split, images_file, labels_file in (("train", files[0], files[1]), ("test", files[2], files[3])):
        images = _read_idx(images_file, 3)
        labels = _read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"{labels_file}: {len(labels)} labels for {len(images)} images; get both files again"
            )
        parts[split] = (images[:, None], labels.astype(np.int64))
    return Arrays(parts, None)


# The objects that a pickle of arrays refers to, by name; the modules are those of old and new releases of numpy.
_ALLOWED: dict[str, Any] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(0).__reduce__()[0],
}
# Instructions of a pickle; CIFAR-100 has 250,000.
_MOST_OPCODES = 600_000
_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray"}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for numbers, strings, lists, dictionaries and numpy arrays; any other object is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def read_cifar10(files: Sequence[Path]) -> Arrays:
    """Reads ``cifar-10-python.tar.gz``: five training batches and a test batch, in the official order."""
    batches = _read_members(files[0], [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"])
    pairs = [_images_and_labels(batch, b"labels", files[0]) for batch in batches]
    train = (np.concatenate([pair[0] for pair in pairs[:5]]), np.concatenate([pair[1] for pair in pairs[:5]]))
    return Arrays({"train": train, "test": pairs[5]}, None)


def read_cifar100(files: Sequence[Path]) -> Arrays:
    """Reads ``cifar-100-python.tar.gz``, with fine labels and the class names of its ``meta`` file."""
    train, test, meta = _read_members(files[0], ["train", "test", "meta"])
    names = meta.get(b"fine_label_names") if isinstance(meta, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{files[0]}: no class names in its meta file; get the official archive again")
    parts = {"train": _images_and_labels(train, b"fine_labels", files[0])}
    parts["test"] = _images_and_labels(test, b"fine_labels", files[0])
    return Arrays(parts, tuple(name.decode("ascii", "replace") for name in names))


def _read_members(path: Path, names: list[str]) -> list[Any]:
    """The unpickled contents of the files ``names`` in a tar.gz; raises :class:`DataError` if one is missing."""
    contents: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            size, total = path.stat().st_size, 0
            for member in archive:
                total += member.size
                check_expansion(total, size, str(path))
                name = member.name.rsplit("/", 1)[-1]
                stream = archive.extractfile(member) if name in names else None
                if stream is not None:
                    contents[name] = load_arrays(stream.read(), f"{path}:{member.name}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}); get it again") from error
    if missing := [name for name in names if name not in contents]:
        raise DataError(f"{path}: {missing[0]} is missing; get the official archive again")
    return [contents[name] for name in names]


def load_arrays(data: bytes, where: str) -> Any:
    """Unpickles plain values and numpy arrays; strings of Python 2 are returned as bytes.

    Raises:
        DataError: the pickle is damaged or refers to any other object, such as a function.
    """
    try:
        # Python's unpickler allocates as many entries as the largest number of an object that a pickle refers to.
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number > _MOST_OPCODES:
                raise pickle.UnpicklingError("more values than an archive has")
            if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(data):
                raise pickle.UnpicklingError(f"object number {argument:,} of {len(data):,} bytes")
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    # A damaged pickle can raise any kind of exception.
    except Exception as error:
        raise DataError(
            f"{where}: not a pickle of plain arrays ({error}); get the official archive again"
        ) from error


def _images_and_labels(batch: Any, key: bytes, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``[N, 3, 32, 32]`` and labels ``[N]`` of a CIFAR batch; ``key`` is the key of the labels."""
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


def read_svhn(files: Sequence[Path]) -> Arrays:
    """Reads SVHN's ``train_32x32.mat`` and ``test_32x32.mat``; the label 10 of digit 0 becomes class 0."""
    return Arrays({"train": _read_mat(files[0]), "test": _read_mat(files[1])}, None)


def _read_mat(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``[N, 3, 32, 32]`` and labels ``[N]`` of one of SVHN's MATLAB files."""
    from scipy.io import loadmat, whosmat  # type: ignore[import-untyped]

    try:
        size = path.stat().st_size
        for _, shape, _ in whosmat(path):
            check_expansion(math.prod(shape), size, str(path))
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    except DataError:
        raise
    # scipy raises many kinds of exceptions for a damaged file.
    except Exception as error:
        raise DataError(f"{path}: truncated or damaged MATLAB file ({error}); get it again") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2:] != (3, len(labels)):
        raise DataError(
            f"{path}: X is {images.dtype} {images.shape}, expected uint8 [32, 32, 3, {len(labels)}]; get it again"
        )
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10
