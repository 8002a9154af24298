"""Image-folder layouts: which part of a path is the split, and which the class.

- ``split/class/.../file`` with splits train, val, test; or ``class/.../file``.
- Folders that all images share are skipped (``mydata/train/cat/1.png`` is ``train/cat/1.png``).
- Only files with an image extension count; names that start with a dot, and ``__MACOSX``, do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from trilemma.data.pictures import EXTENSIONS
from trilemma.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, order=True)
class Place:
    """Where an image belongs; ``split`` is ``"all"`` in a layout without splits, ``path`` the whole path."""

    split: str
    class_name: str
    path: str


def places(files: Iterable[str], folders: Iterable[str], where: str) -> list[Place]:
    """The images among ``files``, sorted by split, class and path.

    Args:
        files: ``/``-separated paths relative to the source.
        folders: paths of folders, to find classes without images; may be incomplete.
        where: the source, for messages.

    Raises:
        DataError: no image, an image outside a class folder, or a class folder without images.
    """
    images = [
        parts
        for file in files
        if (parts := _visible(file)) and PurePosixPath(file).suffix.lower() in EXTENSIONS
    ]
    if not images:
        raise DataError(f"{where}: holds no image file; expected split/class/file or class/file")
    depth = _shared_depth(images)
    tops = {parts[depth] for parts in images}
    level = depth + 1 if tops <= set(SPLITS) else depth
    for parts in images:
        if len(parts) < level + 2:
            raise DataError(
                f"{where}: {'/'.join(parts)} is not in a class folder; expected split/class/file "
                "(splits train, val, test) or class/file"
            )
    if level == depth and tops & set(SPLITS) and min(len(parts) for parts in images) > level + 2:
        raise DataError(
            f"{where}: folders {sorted(tops - set(SPLITS))} stand beside the splits "
            f"{sorted(tops & set(SPLITS))}; use train, val and test only"
        )
    found = sorted(
        Place(parts[depth] if level > depth else "all", parts[level], "/".join(parts)) for parts in images
    )
    full = {parts[: level + 1] for parts in images}
    shared = images[0][:depth]
    for folder in folders:
        parts = _visible(folder)
        if len(parts) == level + 1 and parts[:depth] == shared and parts not in full:
            if level > depth and parts[depth] not in tops:
                continue  # a folder beside the splits, not a class
            raise DataError(f"{where}: class folder {'/'.join(parts)} has no image; fill or remove it")
    return found


def _visible(path: str) -> tuple[str, ...]:
    """The parts of a path, or () for a hidden one."""
    parts = tuple(part for part in PurePosixPath(path).parts if part not in (".", "/"))
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return () if hidden else parts


def _shared_depth(images: list[tuple[str, ...]]) -> int:
    """How many leading folders all images share, none of them a split or the class folder."""
    depth = 0
    while all(len(parts) > depth + 2 for parts in images):
        tops = {parts[depth] for parts in images}
        if len(tops) > 1 or tops <= set(SPLITS):
            break
        depth += 1
    return depth


def split_spans(
    found: list[Place], where: str
) -> tuple[dict[str, tuple[int, int]], tuple[str, ...], list[int]]:
    """Spans per split, class names (sorted) and a label per image, of places grouped by split.

    Raises:
        DataError: the splits do not have the same classes.
    """
    classes: dict[str, set[str]] = {}
    spans: dict[str, tuple[int, int]] = {}
    for place, image in enumerate(found):
        classes.setdefault(image.split, set()).add(image.class_name)
        spans[image.split] = (spans.get(image.split, (place, 0))[0], place + 1)
    (first, names), *others = classes.items()
    for split, other in others:
        if odd := sorted(names ^ other):
            side = first if odd[0] in names else split
            raise DataError(
                f"{where}: class {odd[0]!r} is in {side} alone ({first} has {len(names)} classes, "
                f"{split} {len(other)}); every split needs the same class folders"
            )
    class_names = tuple(sorted(names))
    label = {name: k for k, name in enumerate(class_names)}
    return spans, class_names, [label[image.class_name] for image in found]
