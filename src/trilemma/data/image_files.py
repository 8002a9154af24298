"""Image files (a folder or archives) as one array with a common image size and number of channels.

Size: the most common size of the train part (of the whole source if it has none; the smaller one in a tie), or
``size``. Channels: 1 if every image is grey, else 3. :mod:`trilemma.data.pictures` states how an image is
decoded and resized.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from trilemma.data.cache import Contents, Size
from trilemma.data.class_names import normal_form
from trilemma.data.containers import Container, open_container
from trilemma.data.layout import SPLITS, ImagePath, list_images, split_spans, unlabelled_images
from trilemma.data.left_out import LeftOut, print_remarks
from trilemma.data.locate import locate_images
from trilemma.data.pictures import decode, decoding_threads, is_image, read_header
from trilemma.errors import DataError
from trilemma.limits import check_expansion
from trilemma.progress import bar, can_draw

_Member = tuple[ImagePath, Container]
# A split that has a file keeps it if a later one has a link to it: test images stay as they are.
_KEEPS = ("test", "val", "train", "all")


def image_files_contents(
    sources: Sequence[tuple[str, Path]], size: Size, numbered: bool, where: str, labelled: bool = True
) -> Contents:
    """Converts image files to :class:`Contents` for the decode cache.

    Args:
        sources: pairs (split, folder or archive). The split, ``"train"``, ``"val"``, ``"test"`` or ``"all"``, applies
            to files that are not in a split folder inside.
        size: (height, width) of the images, or ``None`` for the most common size.
        numbered: sort the images of a split by the number that is their file name, not by class and path.
        where: the source, for messages.
        labelled: the images are arranged by class; otherwise all are one class, in any arrangement.

    Raises:
        LayoutError: the images are not arranged by class.
        DataError: the source cannot be read; the message has the archive and the file in it.
    """
    left_out = LeftOut()
    try:
        members = _members(sources, labelled, left_out)
        members.sort(key=lambda member: _order(member[0], numbered))
        members = _without_links(members, left_out)
        spans, class_names, labels = split_spans([image for image, _ in members], where)
    except DataError:
        # Often the reason of the error.
        print_remarks(where, left_out.lines())
        raise

    headers, digest, total_bytes = [], hashlib.sha256(), 0
    for image, container in members:
        data = container.read(image.path, None)
        headers.append(read_header(data, _name(image, container)))
        total_bytes += len(data)
        name = f"{image.split}/{image.class_name}/{normal_form(PurePosixPath(image.path).name)}"
        digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode("utf-8", "surrogateescape"))

    first, last = spans.get("train", (0, len(members)))
    native = most_common_size([(height, width) for height, width, _ in headers[first:last]])
    channels = 3 if any(colour for _, _, colour in headers) else 1
    shape = (channels, *(size or native))
    if size is None:
        check_expansion(len(members) * math.prod(shape), total_bytes, f"{where}, decoded")
    threads = decoding_threads(total_bytes / len(members))

    def fill(out: NDArray[np.uint8]) -> None:
        def decode_one(index: int) -> None:
            image, container = members[index]
            out[index] = decode(container.read(image.path, None), shape, _name(image, container))

        with bar(f"decoding {where}", len(members), can_draw()) as advance:
            if threads == 1:
                for index in range(len(members)):
                    decode_one(index)
                    advance(1)
                return
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(decode_one, range(len(members))):
                    advance(1)

    return Contents(
        shape,
        np.array(labels, np.int64),
        spans,
        class_names,
        digest.hexdigest(),
        native,
        fill,
        (*_kinds(members), *left_out.lines()),
    )


def images_in(root: Path) -> tuple[list[_Member], LeftOut]:
    """The images of a folder or of archives with their containers, sorted by split, class and path.

    Raises:
        DataError: the source cannot be read, or its images are not arranged by class.
    """
    sources, left_out = locate_images(root)
    members = _without_links(_members(sources, True, left_out), left_out)
    return sorted(members, key=lambda member: _order(member[0], False)), left_out


def folder_images(folder: Path) -> list[Path]:
    """The image files of a folder in any arrangement, sorted by path; what is not counted is printed.

    Raises:
        DataError: there is none, or a folder cannot be read.
    """
    return [folder / image.path for image, _ in _unlabelled(folder)]


def image_readers(source: Path) -> dict[str, Callable[[], bytes]]:
    """The image files of a folder or archive in any arrangement, sorted by path; what is not counted is printed.

    Returns:
        Path of each file, ``ARCHIVE:PATH`` in an archive, to a function that returns its content and may raise
        :class:`DataError`.

    Raises:
        DataError: there is none, or the source cannot be read.
    """
    separator = "/" if source.is_dir() else ":"

    def reader(container: Container, path: str) -> Callable[[], bytes]:
        return lambda: container.read(path, None)

    return {
        f"{source}{separator}{image.path}": reader(container, image.path)
        for image, container in _unlabelled(source)
    }


def _unlabelled(source: Path) -> list[_Member]:
    left_out = LeftOut()
    members = _without_links(_members([("all", source)], False, left_out), left_out)
    print_remarks(str(source), left_out.lines())
    return members


def _members(sources: Sequence[tuple[str, Path]], labelled: bool, left_out: LeftOut) -> list[_Member]:
    """The images of all sources; what is not counted is added to ``left_out``."""
    members: list[_Member] = []
    container_of_split: dict[str, str] = {}
    for split, path in sources:
        container = open_container(path)
        left_out.update(container.left_out)
        files, where = container.files, container.where

        def may_be_image(file: str, container: Container = container) -> bool:
            return is_image(lambda count: container.read(file, count))

        if not labelled:
            images = unlabelled_images(files, where, may_be_image, left_out)
            members += [(image, container) for image in images]
            continue
        for image in list_images(files, container.folders, where, may_be_image, left_out):
            actual = split if image.split == "all" else image.split
            other = container_of_split.setdefault(actual, where)
            if other != where:
                raise DataError(f"{where}: split {actual} is in {other} too; keep one of them")
            members.append((ImagePath(actual, image.class_name, image.path), container))
    return members


def _without_links(members: list[_Member], left_out: LeftOut) -> list[_Member]:
    """The images without those that are the same file as another, by hard or symbolic links.

    Raises:
        DataError: one file is in two classes.
    """
    kept: dict[Hashable, _Member] = {}
    for member in sorted(members, key=lambda member: _KEEPS.index(member[0].split)):
        image, container = member
        first, _ = kept.setdefault(container.identity(image.path), member)
        if first.class_name != image.class_name:
            raise DataError(
                f"{container.where}: {first.path} and {image.path} are one file in two classes; remove one of them"
            )
        if first.split != image.split:
            left_out.add(f"the same file as one of {first.split}, where it is counted", image.path)
        elif first.path != image.path:
            left_out.add("a link to a file that is counted already", image.path)
    unique = {id(member) for member in kept.values()}
    return [member for member in members if id(member) in unique]


def _order(image: ImagePath, numbered: bool) -> tuple[int, int, str, str, str]:
    """The sort key of an image."""
    split = (*SPLITS, "all").index(image.split)
    if numbered:
        return split, int(PurePosixPath(image.path).stem), "", "", ""
    return split, 0, image.class_name, normal_form(image.path), image.path


def _kinds(members: list[_Member]) -> list[str]:
    """A line with the number of files of each ending, if there are several."""
    kinds = Counter(PurePosixPath(image.path).suffix.lower() for image, _ in members)
    counts = [f"{count:,} {ending or 'without an ending'}" for ending, count in kinds.most_common()]
    return [f"files: {', '.join(counts)}"] if len(counts) > 1 else []


def _name(image: ImagePath, container: Container) -> str:
    """The container and the path in it, for messages."""
    return f"{container.where}:{image.path}"


def most_common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The most frequent (height, width); in a tie the one with the smallest area, then the smallest height."""
    return min(Counter(sizes).items(), key=lambda item: (-item[1], item[0][0] * item[0][1], item[0][0]))[0]
