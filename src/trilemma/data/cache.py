"""The decode cache: every source is decoded once, into a memory-mapped uint8 array.

An entry consists of three files in the cache folder: ``KEY.npy`` (images), ``KEY.labels.npy`` and ``KEY.json``, which
is written last and records sizes and checksums. An entry that does not match them is built again. If the folder cannot
be written, the images are decoded into memory, unless they are too large for that.
"""

from __future__ import annotations

import functools
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilemma.errors import DataError, NotStoredError
from trilemma.files import replacing, reserve, text_digest, write_text
from trilemma.printing import print_message

FORMAT = 2
# Images up to this size are verified by their checksum, 3 GB/s, whenever an entry is opened. Larger ones stay on the
# disk until they are used.
_VERIFIED_BYTES = 1 << 29

# Largest images that are decoded into memory if the cache cannot be written.
_MEMORY_BYTES = 1 << 30

_required: ContextVar[bool] = ContextVar("required", default=False)

# (height, width) to resize to, or None to keep the size.
Size = tuple[int, int] | None


@dataclass(frozen=True)
class Contents:
    """The content of a source before its images are decoded.

    Attributes:
        shape: (C, H, W) of every image.
        labels: int64 ``[N]``.
        parts: split name to (start, end) of its range of images, end excluded; ``"all"`` for a source without splits.
        class_names: in label order.
        identity: SHA-256 of the content, independent of the container that it is stored in.
        native: the most common (H, W) before resizing.
        fill: writes the decoded images into a uint8 ``[N, C, H, W]`` array.
        remarks: the kinds of files if there are several, and what is not counted, one line each.
    """

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    parts: dict[str, tuple[int, int]]
    class_names: tuple[str, ...]
    identity: str
    native: tuple[int, int]
    fill: Callable[[NDArray[np.uint8]], None]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A decoded source; attributes as in :class:`Contents`.

    ``images`` is memory-mapped copy-on-write, or in memory if the cache cannot be written.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parts: dict[str, tuple[int, int]]
    class_names: tuple[str, ...]
    identity: str
    native: tuple[int, int]
    remarks: tuple[str, ...]


def cache_folder() -> Path:
    """``TRILEMMA_CACHE`` if set, else ``trilemma`` in ``XDG_CACHE_HOME`` or ``~/.cache``. Does not create it."""
    if folder := os.environ.get("TRILEMMA_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trilemma"


@contextmanager
def cache_required() -> Iterator[None]:
    """A context in which a cache folder that cannot be written is an error for images of any size."""
    token = _required.set(True)
    try:
        yield
    finally:
        _required.reset(token)


def cached(key: str, read: Callable[[], Contents]) -> Entry:
    """The entry of ``key``; built from ``read()`` if it is missing or damaged.

    If the cache folder cannot be written, the images are decoded into memory, and a line on standard error says so.

    Raises:
        DataError: the source cannot be read.
        NotStoredError: the cache folder cannot be written, and the images are larger than 1 GiB, or the cache is
            required (:func:`cache_required`).
    """
    entry = _open(key)
    if entry is None:
        contents = read()
        try:
            _build(key, contents)
        except NotStoredError as error:
            size = len(contents.labels) * math.prod(contents.shape)
            if size > _MEMORY_BYTES or _required.get():
                raise
            _warn_once(f"warning: {error}; the images are decoded into memory by every command")
            return in_memory(contents)
        entry = _open(key)
    if entry is None:
        raise DataError(
            f"{cache_folder()}: the decode cache cannot be read back after writing; set TRILEMMA_CACHE to another disk"
        )
    return entry


def in_memory(contents: Contents) -> Entry:
    """The entry of a source whose images are decoded into memory."""
    images = np.empty((len(contents.labels), *contents.shape), np.uint8)
    contents.fill(images)
    return Entry(
        images,
        contents.labels,
        contents.parts,
        contents.class_names,
        contents.identity,
        contents.native,
        contents.remarks,
    )


@functools.cache
def _warn_once(text: str) -> None:
    print_message(text)


def _files(key: str) -> tuple[Path, Path, Path]:
    """The paths of the images, the labels and the metadata of an entry."""
    folder = cache_folder() / "decoded"
    return folder / f"{key}.npy", folder / f"{key}.labels.npy", folder / f"{key}.json"


def _open(key: str) -> Entry | None:
    """The entry of ``key``, or ``None`` if it is missing, truncated, damaged or of another format."""
    images_file, labels_file, metadata_file = _files(key)
    try:
        metadata: dict[str, Any] = json.loads(metadata_file.read_text("utf-8"))
        # "c" (copy-on-write): torch needs writable memory, and a write must never change the file.
        images = np.load(images_file, mmap_mode="c")
        labels = np.load(labels_file)
        valid = (
            metadata["format"] == FORMAT
            and images_file.stat().st_size == metadata["images_bytes"]
            and list(images.shape) == metadata["shape"]
            and images.dtype == np.uint8
            and zlib.crc32(labels.tobytes()) == metadata["labels_crc32"]
            and _intact(metadata, images)
        )
        if not valid:
            return None
        parts = {split: (int(span[0]), int(span[1])) for split, span in metadata["parts"].items()}
        native = (int(metadata["native"][0]), int(metadata["native"][1]))
        return Entry(
            images,
            labels,
            parts,
            tuple(metadata["class_names"]),
            metadata["identity"],
            native,
            tuple(metadata["remarks"]),
        )
    # Any exception: NumPy parses the header of a damaged file as Python code, and may allocate what it claims.
    except Exception:
        return None


def _intact(metadata: dict[str, Any], images: NDArray[np.uint8]) -> bool:
    """Whether metadata and images match their checksums; entries of earlier versions have none."""
    if "digest" not in metadata:
        return True
    if metadata["digest"] != _digest(metadata):
        return False
    return images.nbytes > _VERIFIED_BYTES or zlib.crc32(images.data) == metadata["images_crc32"]


def _digest(metadata: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(metadata))
    return text_digest(json.dumps({key: plain[key] for key in plain if key != "digest"}, sort_keys=True))


def _build(key: str, contents: Contents) -> None:
    """Decodes the images and writes the three files of an entry; raises :class:`NotStoredError` if it cannot."""
    images_file, labels_file, metadata_file = _files(key)
    shape = (len(contents.labels), *contents.shape)
    try:
        with replacing(images_file) as temporary:
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            # A memory map on a full disk ends the process with SIGBUS instead of an exception.
            reserve(temporary)
            contents.fill(images)
            images.flush()
            images_crc32 = zlib.crc32(images.data)
            images_bytes = temporary.stat().st_size
        # np.save gets a stream, since it would append .npy to a path.
        with replacing(labels_file) as temporary, temporary.open("wb") as stream:
            np.save(stream, contents.labels)
        metadata = {
            "format": FORMAT,
            "shape": shape,
            "images_bytes": images_bytes,
            "images_crc32": images_crc32,
            "labels_crc32": zlib.crc32(contents.labels.tobytes()),
            "parts": contents.parts,
            "class_names": contents.class_names,
            "identity": contents.identity,
            "native": contents.native,
            "remarks": contents.remarks,
        }
        write_text(metadata_file, json.dumps({**metadata, "digest": _digest(metadata)}))
    except NotStoredError as error:
        advice = "free some space or set TRILEMMA_CACHE to another folder"
        raise NotStoredError(f"the decode cache {cache_folder()}", error.reason, advice) from error
