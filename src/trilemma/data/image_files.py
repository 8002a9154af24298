"""Image files (a folder or archives) as one array with a common image size and number of channels.

Size: the most common size of the train part (of the whole source if it has none; the smaller one in a tie), or
``size`` x ``size``. Channels: 1 if every image is grey, else 3. :mod:`trilemma.data.pictures` states how an image is
decoded and resized.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from trilemma.data.cache import Contents
from trilemma.data.containers import Container, open_container
from trilemma.data.layout import SPLITS, ImagePath, list_images, split_spans
from trilemma.data.pictures import decode, read_header
from trilemma.errors import DataError
from trilemma.progress import bar, standard_error_is_a_terminal

# Mean file size from which threads are faster. For smaller files the time is spent in the interpreter, not in Pillow.
_MIN_BYTES_FOR_THREADS = 10_000


def image_files_contents(
    sources: Sequence[tuple[str, Path]], size: int | None, numbered: bool, where: str
) -> Contents:
    """Converts image files to :class:`Contents` for the decode cache.

    Args:
        sources: pairs (split, folder or archive). The split, ``"train"``, ``"val"``, ``"test"`` or ``"all"``, applies
            to files that are not in a split folder inside.
        size: side of the square images, or ``None`` for the most common size.
        numbered: sort the images of a split by the number that is their file name, not by class and path.
        where: the source, for messages.

    Raises:
        DataError: the source cannot be read or has no valid layout; the message has the archive and the file in it.
    """
    members: list[tuple[ImagePath, Container]] = []
    container_of_split: dict[str, str] = {}
    for split, path in sources:
        container = open_container(path)
        for image in list_images(container.files, container.folders, container.where):
            actual = split if image.split == "all" else image.split
            other = container_of_split.setdefault(actual, container.where)
            if other != container.where:
                raise DataError(f"{container.where}: split {actual} is in {other} too; keep one of them")
            members.append((ImagePath(actual, image.class_name, image.path), container))
    members.sort(key=lambda member: _order(member[0], numbered))
    spans, class_names, labels = split_spans([image for image, _ in members], where)

    headers, digest, total_bytes = [], hashlib.sha256(), 0
    for image, container in members:
        data = container.read(image.path)
        headers.append(read_header(data, _name(image, container)))
        total_bytes += len(data)
        name = f"{image.split}/{image.class_name}/{PurePosixPath(image.path).name}"
        digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())

    first, last = spans.get("train", (0, len(members)))
    native = most_common_size([(height, width) for height, width, _ in headers[first:last]])
    channels = 3 if any(colour for _, _, colour in headers) else 1
    shape = (channels, size or native[0], size or native[1])
    threads = min(os.cpu_count() or 1, 8) if total_bytes / len(members) >= _MIN_BYTES_FOR_THREADS else 1

    def fill(out: NDArray[np.uint8]) -> None:
        def decode_one(index: int) -> None:
            image, container = members[index]
            out[index] = decode(container.read(image.path), shape, _name(image, container))

        with bar(f"decoding {where}", len(members), standard_error_is_a_terminal()) as advance:
            if threads == 1:
                for index in range(len(members)):
                    decode_one(index)
                    advance(1)
                return
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(decode_one, range(len(members))):
                    advance(1)

    return Contents(shape, np.array(labels, np.int64), spans, class_names, digest.hexdigest(), native, fill)


def _order(image: ImagePath, numbered: bool) -> tuple[int, int, str, str]:
    """The sort key of an image."""
    split = (*SPLITS, "all").index(image.split)
    stem = PurePosixPath(image.path).stem
    return (split, int(stem), "", "") if numbered else (split, 0, image.class_name, image.path)


def _name(image: ImagePath, container: Container) -> str:
    """The container and the path in it, for messages."""
    return f"{container.where}:{image.path}"


def most_common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The most frequent (height, width); in a tie the one with the smallest area, then the smallest height."""
    return min(Counter(sizes).items(), key=lambda item: (-item[1], item[0][0] * item[0][1], item[0][0]))[0]
