"""The decode cache: every source becomes one memory-mapped uint8 array, once.

An entry is three files under the cache folder: ``KEY.npy`` (images), ``KEY.labels.npy`` and ``KEY.json``,
which is written last and states the sizes of the other two. An entry that does not agree with its ``.json``
is built again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilemma.errors import DataError
from trilemma.files import replacing, write_text

FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """What a source holds, known before its pixels are.

    Attributes:
        shape: (C, H, W) of every image.
        labels: int64 ``[N]``.
        parts: split name to (first, past the last) place; ``"all"`` for a source without splits.
        class_names: in label order.
        identity: SHA-256 of the content, whatever it is packed in.
        native: the most common (H, W) before any resizing.
        fill: writes the images into a uint8 ``[N, C, H, W]`` array.
    """

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    parts: dict[str, tuple[int, int]]
    class_names: tuple[str, ...]
    identity: str
    native: tuple[int, int]
    fill: Callable[[NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Entry:
    """A decoded source; ``images`` is mapped copy-on-write. Other fields as in :class:`Contents`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parts: dict[str, tuple[int, int]]
    class_names: tuple[str, ...]
    identity: str
    native: tuple[int, int]


def cache_folder() -> Path:
    """``TRILEMMA_CACHE`` if set, else ``trilemma`` in ``XDG_CACHE_HOME`` or ``~/.cache``; not created here."""
    if own := os.environ.get("TRILEMMA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trilemma"


def cached(key: str, read: Callable[[], Contents]) -> Entry:
    """The entry of ``key``, built from ``read()`` if it is missing or damaged.

    Raises:
        DataError: the source is at fault, or the cache folder cannot be written.
    """
    entry = _open(key)
    if entry is None:
        _build(key, read())
        entry = _open(key)
    if entry is None:
        raise DataError(
            f"{cache_folder()}: the decode cache cannot be read back; set TRILEMMA_CACHE to a sound disk"
        )
    return entry


def _files(key: str) -> tuple[Path, Path, Path]:
    folder = cache_folder() / "decoded"
    return folder / f"{key}.npy", folder / f"{key}.labels.npy", folder / f"{key}.json"


def _open(key: str) -> Entry | None:
    images_file, labels_file, note_file = _files(key)
    try:
        note: dict[str, Any] = json.loads(note_file.read_text("utf-8"))
        # "c" (copy-on-write): torch wants writable memory, and a write must never reach the file.
        images = np.load(images_file, mmap_mode="c")
        labels = np.load(labels_file)
        sound = (
            note["format"] == FORMAT
            and images_file.stat().st_size == note["images_bytes"]
            and list(images.shape) == note["shape"]
            and images.dtype == np.uint8
            and zlib.crc32(labels.tobytes()) == note["labels_crc32"]
        )
        if not sound:
            return None
        parts = {split: (int(span[0]), int(span[1])) for split, span in note["parts"].items()}
        native = (int(note["native"][0]), int(note["native"][1]))
        return Entry(images, labels, parts, tuple(note["class_names"]), note["identity"], native)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
    ):  # missing, cut short or not ours: build it again
        return None


def _build(key: str, contents: Contents) -> None:
    images_file, labels_file, note_file = _files(key)
    shape = (len(contents.labels), *contents.shape)
    try:
        with replacing(images_file) as temporary:
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            contents.fill(images)
            images.flush()
            images_bytes = temporary.stat().st_size
        # a stream, not a path: np.save would append .npy to it
        with replacing(labels_file) as temporary, temporary.open("wb") as stream:
            np.save(stream, contents.labels)
        note = {
            "format": FORMAT,
            "shape": shape,
            "images_bytes": images_bytes,
            "labels_crc32": zlib.crc32(contents.labels.tobytes()),
            "parts": contents.parts,
            "class_names": contents.class_names,
            "identity": contents.identity,
            "native": contents.native,
        }
        write_text(note_file, json.dumps(note))
    except OSError as error:
        raise DataError(
            f"{cache_folder()}: the decode cache cannot be written ({error.strerror or error}); "
            "free some space or set TRILEMMA_CACHE to another folder"
        ) from error
