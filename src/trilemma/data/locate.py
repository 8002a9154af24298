"""Finds the files of a data set in ``root``: official archives, archives per split, one archive, or an image folder."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from pathlib import Path

from trilemma.data.cache import cache_folder
from trilemma.data.catalogue import Dataset
from trilemma.data.containers import SUFFIXES
from trilemma.data.download import fetch
from trilemma.errors import DataError

_ARCHIVES = (*SUFFIXES, ".npz")
_SPLIT_PREFIX = re.compile(r"(train|val|test)(?![a-z])", re.IGNORECASE)


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


def locate_images(root: Path) -> list[tuple[str, Path]]:
    """The image sources in ``root`` as pairs (split, path), with split ``"all"`` where the name indicates none.

    A file is the only source, and so is a folder that has subfolders. Of a folder with archives, the sources are the
    archives named for a split (other files are ignored), or the only archive. A folder or archive named ``train*``,
    ``val*`` or ``test*`` is that split, unless it has split folders inside.

    Raises:
        DataError: ``root`` does not exist or cannot be read, has no images or archives, or several for one split.
    """
    _require(root)
    if root.is_file():
        return [(_split_of(root), root)]
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    if any(path.is_dir() for path in entries):
        return [(_split_of(root), root)]
    archives = [path for path in entries if path.name.lower().endswith(_ARCHIVES)]
    named = [(_split_of(path), path) for path in archives if _split_of(path) != "all"]
    if len(archives) == 1:
        return [(_split_of(archives[0]), archives[0])]
    for earlier, later in itertools.pairwise(named):
        if earlier[0] == later[0]:
            raise DataError(
                f"{root}: {earlier[1].name} and {later[1].name} are both the {later[0]} part; keep one"
            )
    if any(path.suffix == ".npz" for _, path in named):
        raise DataError(f"{root}: put the splits into one .npz file (x_train, y_train, x_test, y_test)")
    if not named:
        content = (
            "several archives, none named train*, val* or test*"
            if archives
            else "no image folder and no archive"
        )
        raise DataError(
            f"{root}: holds {content}; give split/class/file, class/file, or train and test archives"
        )
    return named


def _split_of(path: Path) -> str:
    """The split with which the name of ``path`` begins, else ``"all"``."""
    match = _SPLIT_PREFIX.match(path.name)
    return match.group(1).lower() if match else "all"


def _require(root: Path) -> None:
    """Raises :class:`DataError` unless ``root`` exists and can be read."""
    if not root.exists():
        raise DataError(f"{root}: data.root does not exist; check the path")
    if not os.access(root, os.R_OK):
        raise DataError(f"{root}: data.root cannot be read; check its permissions")


def folder_state(root: Path) -> str:
    """A hash of the path of a folder and of the paths, sizes and modification times of its files."""
    lines = []
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = os.path.join(folder, name)
            # A dangling link has no status; it is reported as an error when it is read.
            status = os.stat(path) if os.path.exists(path) else None
            lines.append(f"{path} {status and status.st_size} {status and status.st_mtime_ns}")
    return hashlib.sha256("\n".join([str(root.resolve()), *sorted(lines)]).encode()).hexdigest()
