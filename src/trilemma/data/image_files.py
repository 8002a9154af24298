"""Image files (a folder or archives) as one array of common size and channels.

Shape: the most common size of the train part (of the whole source if it has none; the smaller one in a tie),
or ``size`` x ``size``. Channels: 1 if every image is grey, else 3. Single images are treated as
:mod:`trilemma.data.pictures` states.
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
from trilemma.data.layout import SPLITS, Place, places, split_spans
from trilemma.data.pictures import decode, read_header
from trilemma.errors import DataError
from trilemma.progress import bar, standard_error_is_a_terminal

# Below this the interpreter, not Pillow, is the limit and threads only get in each other's way.
_BYTES_WORTH_A_THREAD = 10_000


def image_files_contents(
    sources: Sequence[tuple[str, Path]], size: int | None, numbered: bool, where: str
) -> Contents:
    """Image files as the decode cache wants them.

    Args:
        sources: (split, folder or archive); the split is that of a file without split folders inside:
            ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
        size: side of the square images wanted, or ``None`` for the most common size.
        numbered: order the images of a split by the number in their file name, not by class and name.
        where: the source, for messages.

    Raises:
        DataError: any fault of the source; the message names the archive and the member.
    """
    members: list[tuple[Place, Container]] = []
    owner: dict[str, str] = {}
    for split, path in sources:
        container = open_container(path)
        for place in places(container.files, container.folders, container.where):
            actual = split if place.split == "all" else place.split
            if owner.setdefault(actual, container.where) != container.where:
                raise DataError(
                    f"{container.where}: split {actual} is in {owner[actual]} too; keep one of them"
                )
            members.append((Place(actual, place.class_name, place.path), container))
    members.sort(key=lambda member: _order(member[0], numbered))
    spans, class_names, labels = split_spans([place for place, _ in members], where)

    headers, digest, total_bytes = [], hashlib.sha256(), 0
    for place, container in members:
        data = container.read(place.path)
        headers.append(read_header(data, _name(place, container)))
        total_bytes += len(data)
        name = f"{place.split}/{place.class_name}/{PurePosixPath(place.path).name}"
        digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())

    first, last = spans.get("train", (0, len(members)))
    native = most_common_size([(height, width) for height, width, _ in headers[first:last]])
    channels = 3 if any(colour for _, _, colour in headers) else 1
    shape = (channels, size or native[0], size or native[1])
    threads = min(os.cpu_count() or 1, 8) if total_bytes / len(members) >= _BYTES_WORTH_A_THREAD else 1

    def fill(out: NDArray[np.uint8]) -> None:
        def decode_one(index: int) -> None:
            place, container = members[index]
            out[index] = decode(container.read(place.path), shape, _name(place, container))

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


def _order(place: Place, numbered: bool) -> tuple[int, int, str, str]:
    split = (*SPLITS, "all").index(place.split)
    stem = PurePosixPath(place.path).stem
    return (split, int(stem), "", "") if numbered else (split, 0, place.class_name, place.path)


def _name(place: Place, container: Container) -> str:
    return f"{container.where}:{place.path}"


def most_common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) that occurs most often; among equals the one with the smaller area, then height."""
    return min(Counter(sizes).items(), key=lambda item: (-item[1], item[0][0] * item[0][1], item[0][0]))[0]
