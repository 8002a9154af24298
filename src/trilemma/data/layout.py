"""Image-folder layouts: finds the split and the class of an image in its path.

- ``split/class/.../file`` with the splits of :data:`SPLIT_NAMES` in any case; or ``class/.../file``.
- Leading folders that all images share are ignored (``mydata/train/cat/1.png`` is read as ``train/cat/1.png``).
- An image is a file with an ending that Pillow reads, or without an ending if its first bytes are those of an image.
- Hidden files (``.name``) and ``__MACOSX`` are ignored.
- Names are compared in Unicode's composed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from trilemma.data.class_names import normal_form
from trilemma.data.containers import is_hidden
from trilemma.data.left_out import LeftOut
from trilemma.data.pictures import endings
from trilemma.errors import DataError

SPLITS = ("train", "val", "test")
# The names that a split folder may have, in small letters. Of a single folder only those of SPLITS count: a parent of
# all images may be called "dev" for other reasons.
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    **dict.fromkeys(("valid", "validation", "dev", "eval", "held-out", "held_out", "holdout"), "val"),
    "testing": "test",
}
# The class of images in a source that is read without labels and has no class folders.
UNLABELLED = "images"
# No more endings than this are listed in a message.
_MAX_ENDINGS = 6


class LayoutError(DataError):
    """Images that are not arranged by class."""


@dataclass(frozen=True, order=True)
class ImagePath:
    """The split (``"all"`` in a layout without splits), the class and the full path of an image in its container."""

    split: str
    class_name: str
    path: str


# The components of a path, for comparison, and the path as it is.
_Path = tuple[tuple[str, ...], str]


def find_images(
    files: Iterable[str], where: str, is_image: Callable[[str], bool], left_out: LeftOut
) -> list[_Path]:
    """The images among ``files``; the others are added to ``left_out``.

    Args:
        files: ``/``-separated paths relative to the source.
        where: the source, for messages.
        is_image: whether the content of a file without an ending is an image.
        left_out: gets the files that are not used.

    Raises:
        LayoutError: there is no image.
    """
    images: list[_Path] = []
    hidden: list[str] = []
    unknown: list[str] = []
    bare: list[str] = []
    for file in files:
        parts = _components(file)
        ending = PurePosixPath(file).suffix.lower()
        if any(map(is_hidden, parts)):
            # Files that begin with ._ are attributes of another file, written by macOS.
            hidden += [file] if ending in endings() and not parts[-1].startswith("._") else []
        elif ending in endings() or (not ending and is_image(file)):
            images.append((parts, "/".join(PurePosixPath(file).parts)))
        else:
            (unknown if ending else bare).append(file)
    left_out.add("hidden, since a name begins with a dot or is __MACOSX", *hidden)
    others = sorted({PurePosixPath(file).suffix.lower() for file in unknown})
    more = ", ..." if len(others) > _MAX_ENDINGS else ""
    left_out.add(f"no ending of an image ({', '.join(others[:_MAX_ENDINGS])}{more})", *unknown)
    left_out.add("without an ending, and no image by the first bytes", *bare)
    if not images:
        raise LayoutError(f"{where}: holds no image file; it needs files that end in .png, .jpg or the like")
    return images


def list_images(
    files: Iterable[str],
    folders: Iterable[str],
    where: str,
    is_image: Callable[[str], bool] = lambda file: False,
    left_out: LeftOut | None = None,
) -> list[ImagePath]:
    """The images among ``files``, sorted by split, class and path.

    Args:
        files, where, is_image, left_out: as for :func:`find_images`.
        folders: paths of folders, in which classes without images are found; may be incomplete.

    Raises:
        LayoutError: no image, an image outside a class folder, a folder beside the split folders, two folders for one
            split, split folders inside class folders, or a class folder without images.
    """
    found = find_images(files, where, is_image, LeftOut() if left_out is None else left_out)
    images = [parts for parts, _ in found]
    depth = _shared_depth(images)
    tops = {parts[depth] for parts in images}
    level = depth + 1 if _are_splits(tops) else depth
    for parts, path in found:
        if len(parts) < level + 2:
            raise LayoutError(
                f"{where}: {path} is not in a class folder; arrange it as split/class/file "
                "(splits train, val, test) or class/file"
            )
    shortest = min(map(len, images))
    if level > depth:
        _check_splits(tops, where)
    elif shortest > level + 2:
        _check_classes(images, tops, level, where)
    image_paths = sorted(
        ImagePath(SPLIT_NAMES[parts[depth].lower()] if level > depth else "all", parts[level], path)
        for parts, path in found
    )
    _check_empty(folders, images, depth, level, where)
    return image_paths


def _are_splits(names: set[str]) -> bool:
    """Whether folders beside each other are splits, all of them."""
    known = SPLIT_NAMES if len(names) > 1 else SPLITS
    return all(name.lower() in known for name in names)


def _check_splits(tops: set[str], where: str) -> None:
    """Raises :class:`LayoutError` if two folders are one split."""
    folder_of: dict[str, str] = {}
    for name in sorted(tops):
        split = SPLIT_NAMES[name.lower()]
        if split in folder_of:
            raise LayoutError(
                f"{where}: folders {folder_of[split]} and {name} are both the {split} part; keep one of them"
            )
        folder_of[split] = name


def _check_classes(images: list[tuple[str, ...]], tops: set[str], level: int, where: str) -> None:
    """Raises :class:`LayoutError` if folders of classes, which have subfolders, are or contain splits."""
    splits = {name for name in tops if name.lower() in SPLIT_NAMES}
    if splits and (len(splits) > 1 or any(name.lower() in SPLITS for name in splits)):
        raise LayoutError(
            f"{where}: folders {sorted(tops - splits)} are beside the splits {sorted(splits)}; "
            "use train, val and test only"
        )
    inner = {parts[level + 1] for parts in images}
    if len(inner) > 1 and _are_splits(inner):
        raise LayoutError(
            f"{where}: folders {sorted(inner)} are inside the class folders; arrange it as split/class/file"
        )


def _check_empty(
    folders: Iterable[str], images: list[tuple[str, ...]], depth: int, level: int, where: str
) -> None:
    """Raises :class:`LayoutError` if a class folder has no image."""
    full = {parts[: level + 1] for parts in images}
    splits = {parts[: depth + 1] for parts in images}
    shared = images[0][:depth]
    for folder in folders:
        parts = _components(folder)
        if len(parts) != level + 1 or parts[:depth] != shared or parts in full or any(map(is_hidden, parts)):
            continue
        # A folder inside a folder that is not a split is no class folder.
        if level > depth and parts[: depth + 1] not in splits:
            continue
        raise LayoutError(f"{where}: class folder {folder} has no image; add images to it or remove it")


def _components(path: str) -> tuple[str, ...]:
    """The components of a path, in normal form."""
    return tuple(normal_form(part) for part in PurePosixPath(path).parts if part not in (".", "/"))


def _shared_depth(images: list[tuple[str, ...]]) -> int:
    """The number of leading folders that all images share, without split and class folders."""
    depth = 0
    while all(len(parts) > depth + 2 for parts in images):
        tops = {parts[depth] for parts in images}
        if len(tops) > 1 or _are_splits(tops):
            break
        depth += 1
    return depth


def unlabelled_images(
    files: Iterable[str], where: str, is_image: Callable[[str], bool], left_out: LeftOut
) -> list[ImagePath]:
    """The images among ``files``, in any arrangement, as one class without splits; see :func:`find_images`."""
    found = find_images(files, where, is_image, left_out)
    return sorted(ImagePath("all", UNLABELLED, path) for _, path in found)


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
        LayoutError: the splits do not have the same classes.
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
            raise LayoutError(
                f"{where}: class {unmatched[0]!r} is in {owner} alone ({first} has {len(names)} classes, "
                f"{split} {len(other)}); every split needs the same class folders"
            )
    class_names = tuple(sorted(names))
    label = {name: k for k, name in enumerate(class_names)}
    return spans, class_names, [label[image.class_name] for image in images]
