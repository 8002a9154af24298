"""The IDX format of MNIST and Fashion-MNIST: a magic number, big-endian sizes, then bytes.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trilemma.data.arrays import Arrays
from trilemma.errors import DataError


def parse_idx(data: bytes, where: str) -> NDArray[np.uint8]:
    """An unsigned-byte IDX file as an array of its own shape.

    Raises:
        DataError: another magic number, or more or fewer bytes than the sizes promise.
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


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        data = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}); get it again") from error
    array = parse_idx(data, str(path))
    if array.ndim != dimensions:
        raise DataError(
            f"{path}: {array.ndim} dimensions, expected {dimensions}; get the official archive again"
        )
    return array


def read_idx_set(files: Sequence[Path]) -> Arrays:
    """Train images, train labels, test images, test labels; one grey channel."""
    parts = {}
    for split, images_file, labels_file in (("train", files[0], files[1]), ("test", files[2], files[3])):
        images = _read(images_file, 3)
        labels = _read(labels_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"{labels_file}: {len(labels)} labels for {len(images)} images; get both files again"
            )
        parts[split] = (images[:, None], labels.astype(np.int64))
    return Arrays(parts, None)
