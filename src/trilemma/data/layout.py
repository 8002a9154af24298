"""Image-folder layouts: finds the split and the class of an image in its path.

- ``split/class/.../file`` with splits train, val, test; or ``class/.../file``.
- Leading folders that all images share are ignored (``mydata/train/cat/1.png`` is read as ``train/cat/1.png``).
- Only files with an image extension are used; hidden files (``.name``) and ``__MACOSX`` are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from trilemma.data.pictures import EXTENSIONS
from trilemma.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, order=True)
class ImagePath:
    """The split (``"all"`` in a layout without splits), the class and the full path of an image in its container."""

    split: str
    class_name: str
    path: str


def list_images(files: Iterable[str], folders: Iterable[str], where: str) -> list[ImagePath]:
    """The images among ``files``, sorted by split, class and path.

    Args:
        files: ``/``-separated paths relative to the source.
        folders: paths of folders, in which classes without images are found; may be incomplete.
        where: the source, for messages.

    Raises:
        DataError: no image, an image outside a class folder, a folder beside the split folders, or a class folder
            without images.
    """
    images = [
        parts
        for file in files
        if (parts := _visible(file)) and PurePosixPath(file).suffix.lower() in EXTENSIONS
    ]
    if not images:
        raise DataError(f"{where}: holds no image file; arrange it as split/class/file or class/file")
    depth = _shared_depth(images)
    tops = {parts[depth] for parts in images}
    level = depth + 1 if tops <= set(SPLITS) else depth
    for parts in images:
        if len(parts) < level + 2:
            raise DataError(
                f"{where}: {'/'.join(parts)} is not in a class folder; arrange it as split/class/file "
                "(splits train, val, test) or class/file"
            )
    if level == depth and tops & set(SPLITS) and min(len(parts) for parts in images) > level + 2:
        raise DataError(
            f"{where}: folders {sorted(tops - set(SPLITS))} are beside the splits "
            f"{sorted(tops & set(SPLITS))}; use train, val and test only"
        )
    image_paths = sorted(
        ImagePath(parts[depth] if level > depth else "all", parts[level], "/".join(parts)) for parts in images
    )
    full = {parts[: level + 1] for parts in images}
    shared = images[0][:depth]
    for folder in folders:
        parts = _visible(folder)
        if len(parts) == level + 1 and parts[:depth] == shared and parts not in full:
            # A folder inside a folder that is not a split is no class folder.
            if level > depth and parts[depth] not in tops:
                continue
            raise DataError(
                f"{where}: class folder {'/'.join(parts)} has no image; add images to it or remove it"
            )
    return image_paths


def _visible(path: str) -> tuple[str, ...]:
    """The components of a path; () if one of them is hidden or ``__MACOSX``."""
    parts = tuple(part for part in PurePosixPath(path).parts if part not in (".", "/"))
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return () if hidden else parts


def _shared_depth(images: list[tuple[str, ...]]) -> int:
    """The number of leading folders that all images share, without split and class folders."""
    depth = 0
    while all(len(parts) > depth + 2 for parts in images):
        tops = {parts[depth] for parts in images}
        if len(tops) > 1 or tops <= set(SPLITS):
            break
        depth += 1
    return depth


def split_spans(
    images: list[ImagePath], where: str
) -> tuple[dict[str, tuple[int, int]], tuple[str, ...], list[int]]:
    """The range of each split, the class names and the labels of images.

    Args:
        images: grouped by split.
        where: the source, for messages.

    Returns:
        Split name to (start, end) of its images, end excluded; the sorted class names; the label of each image.

    Raises:
        DataError: the splits do not have the same classes.
    """
    classes: dict[str, set[str]] = {}
    spans: dict[str, tuple[int, int]] = {}
    for index, image in enumerate(images):
        classes.setdefault(image.split, set()).add(image.class_name)
        spans[image.split] = (spans.get(image.split, (index, 0))[0], index + 1)
    (first, names), *others = classes.items()
    for split, other in others:
        if unmatched := sorted(names ^ other):
            owner = first if unmatched[0] in names else split
            raise DataError(
                f"{where}: class {unmatched[0]!r} is in {owner} alone ({first} has {len(names)} classes, "
                f"{split} {len(other)}); every split needs the same class folders"
            )
    class_names = tuple(sorted(names))
    label = {name: k for k, name in enumerate(class_names)}
    return spans, class_names, [label[image.class_name] for image in images]
