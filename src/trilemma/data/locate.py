"""Finds the files of a data set in ``root``: official archives, archives per split, one archive, or an image folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from trilemma.config.registry import DATASETS
from trilemma.data.cache import cache_folder
from trilemma.data.catalogue import Dataset, find_dataset
from trilemma.data.containers import SUFFIXES, is_hidden, walk_folder
from trilemma.data.download import fetch
from trilemma.data.layout import SPLIT_NAMES, SPLITS, LayoutError
from trilemma.data.left_out import LeftOut
from trilemma.data.pictures import endings
from trilemma.errors import DataError

_ARCHIVES = (*SUFFIXES, ".npz")


def locate_official(name: str, official: Dataset, root: Path | None) -> list[Path] | None:
    """The paths of the official archives of a data set, in the order of its table entry.

    Args:
        name: the data set.
        official: its table entry.
        root: where the archives are; ``None`` to download them into the cache folder.

    Returns:
        The paths, or ``None`` if ``root`` has none of the archives.

    Raises:
        DataError: ``root`` does not exist or has only some of the archives, or a download failed.
    """
    if root is None:
        folder = cache_folder() / "downloads" / name
        for archive in official.archives:
            fetch(archive.url, folder / archive.file, archive.checksum)
        return [folder / archive.file for archive in official.archives]
    _require(root)
    if root.is_file() and [root.name] == [archive.file for archive in official.archives]:
        return [root]
    files = [root / archive.file for archive in official.archives]
    missing = [file.name for file in files if not file.is_file()]
    if len(missing) == len(files):
        return None
    if missing:
        raise DataError(f"{root}: {missing[0]} is missing beside the other archives of {name}; add it")
    return files


def needs_download(name: str, root: str | Path | None = None) -> bool:
    """Whether opening the data set ``name`` at ``root`` would download an archive; ``False`` for unknown names."""
    if root is not None or name not in DATASETS:
        return False
    folder = cache_folder() / "downloads" / name
    return not all((folder / archive.file).is_file() for archive in find_dataset(name).archives)


def locate_images(root: Path, labelled: bool = True) -> tuple[list[tuple[str, Path]], LeftOut]:
    """The image sources in ``root`` as pairs (split, path), with split ``"all"`` where the name indicates none.

    A file is the only source, and so is a folder that has subfolders. Of a folder with archives, the sources are the
    archives named for a split, or the only archive. A folder may have archives of some splits and folders of others.
    A folder named ``train``, ``val`` or ``test``, and an archive whose name begins like this, is that split, unless it
    has split folders inside; so is an archive beside others that begins with another name of
    :data:`trilemma.data.layout.SPLIT_NAMES`.

    Args:
        root: the folder or file.
        labelled: without labels, a folder that holds images itself is the only source.

    Returns:
        The sources, and the archives and images in ``root`` that are not read.

    Raises:
        DataError: ``root`` does not exist or cannot be read, has no images or archives, or several for one split.
    """
    _require(root)
    left_out = LeftOut()
    if root.is_file():
        return [(_split_of(root.name, SPLITS), root)], left_out
    entries = sorted(path for path in root.iterdir() if not is_hidden(path.name))
    archives = [path for path in entries if path.name.lower().endswith(_ARCHIVES)]
    images = [path for path in entries if path.suffix.lower() in endings() and path.is_file()]
    if images and not labelled:
        left_out.add("an archive beside images", *(path.name for path in archives))
        return [("all", root)], left_out
    folders = [path for path in entries if path.is_dir()]
    named = [(split, path) for path in archives if (split := _split_of(path.name, SPLIT_NAMES)) != "all"]
    if folders:
        split_of_folder = {SPLIT_NAMES.get(path.name.lower(), "all"): path for path in folders}
        if not named or "all" in split_of_folder or len(split_of_folder) < len(folders):
            left_out.add("an archive beside folders of images", *(path.name for path in archives))
            return [(_split_of_folder(root), root)], left_out
        # An archive beside a folder of the same split is the packed folder.
        packed = [path for split, path in named if split in split_of_folder]
        left_out.add("an archive beside a folder of the same split", *(path.name for path in packed))
        archives = [path for path in archives if path not in packed]
        named = [*split_of_folder.items(), *(row for row in named if row[1] not in packed)]
    elif len(archives) == 1:
        named = [(_split_of(archives[0].name, SPLITS), archives[0])]
    sources = _one_per_split(root, named, archives, images)
    used = {path for _, path in sources}
    left_out.add("its name begins with no split", *(path.name for path in archives if path not in used))
    left_out.add("an image beside archives", *(path.name for path in images))
    return sources, left_out


def _one_per_split(
    root: Path, named: list[tuple[str, Path]], archives: list[Path], images: list[Path]
) -> list[tuple[str, Path]]:
    """``named`` with each split once; raises :class:`DataError` if that cannot be."""
    path_of: dict[str, Path] = {}
    for split, path in named:
        if split in path_of:
            raise DataError(
                f"{root}: {path_of[split].name} and {path.name} are both the {split} part; keep one"
            )
        path_of[split] = path
    if any(path.suffix.lower() == ".npz" for _, path in named):
        raise DataError(f"{root}: put the splits into one .npz file (x_train, y_train, x_test, y_test)")
    if not named:
        content = (
            "several archives, none named train*, val* or test*"
            if archives
            else "images, but no class folders"
            if images
            else "no image folder and no archive"
        )
        raise LayoutError(
            f"{root}: holds {content}; give split/class/file, class/file, or train and test archives"
        )
    return named


def _split_of_folder(root: Path) -> str:
    """The split that is the name of the folder, else ``"all"``."""
    return root.name.lower() if root.name.lower() in SPLITS else "all"


def _split_of(name: str, known: Iterable[str]) -> str:
    """The split of ``known`` with which a file name begins, followed by no letter, else ``"all"``."""
    # The longest first, since "val" begins "valid".
    for word in sorted(known, key=len, reverse=True):
        if re.match(rf"{word}(?![a-z])", name, re.IGNORECASE):
            return SPLIT_NAMES[word]
    return "all"


def _require(root: Path) -> None:
    """Raises :class:`DataError` unless ``root`` exists and can be read."""
    if not root.exists():
        raise DataError(f"{root}: data.root does not exist; check the path")
    if not os.access(root, os.R_OK):
        raise DataError(f"{root}: data.root cannot be read; check its permissions")
    if not (root.is_file() or root.is_dir()):
        raise DataError(
            f"{root}: data.root is neither a file nor a folder; give a folder of images or an archive"
        )


def folder_state(root: Path) -> str:
    """A hash of the path of a folder and of the paths, sizes and times of its files."""
    # Unpacked or copied with their times, files of one size look alike; the time of the change of status cannot be set.
    lines = [
        f"{path} {status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)}"
        for path, status in walk_folder(root).files.items()
    ]
    content = "\n".join([str(root.resolve()), *sorted(lines)])
    # File names that are no UTF-8 have surrogates.
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()
