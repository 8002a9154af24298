"""Containers of image files: a folder, a tar (plain or gzip) or a zip, read without unpacking."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trilemma.errors import DataError

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True)
class Container:
    """The files of a folder or archive.

    Attributes:
        where: path of the container, for messages.
        files: paths of the files, relative and ``/``-separated.
        folders: paths of the folders; an archive may list only some.
        read: returns the bytes of one of ``files``; raises :class:`DataError` if it cannot be read.
    """

    where: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    read: Callable[[str], bytes]


def open_container(path: Path) -> Container:
    """Opens a folder or archive. A ``.tar.gz`` is kept in memory uncompressed while the container exists.

    Raises:
        DataError: a truncated or damaged archive, or an unknown kind of file.
    """
    if path.is_dir():
        return _open_folder(path)
    try:
        if path.name.lower().endswith(".zip"):
            return _open_zip(path)
        if path.name.lower().endswith((".tar.gz", ".tgz")):
            # Read to the end, where gzip checks length and CRC.
            with gzip.open(path) as stream:
                return _open_tar(path, stream.read())
        if path.name.lower().endswith(".tar"):
            with path.open("rb") as stream:
                return _open_tar(path, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}); get it again") from error
    raise DataError(f"{path}: unknown kind of file; give a folder, {', '.join(SUFFIXES)} or .npz")


def _open_folder(root: Path) -> Container:
    files, folders = [], []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        relative = Path(folder).relative_to(root)
        files += [(relative / name).as_posix() for name in names]
        folders += [(relative / name).as_posix() for name in subfolders]

    def read(member: str) -> bytes:
        try:
            return (root / member).read_bytes()
        except OSError as error:
            raise DataError(f"{root / member}: cannot be read ({error.strerror}); check the file") from error

    return Container(str(root), tuple(files), tuple(folders), read)


def _open_tar(path: Path, data: bytes | mmap.mmap) -> Container:
    spans: dict[str, tuple[int, int]] = {}
    folders, end = [], 0
    with tarfile.open(fileobj=io.BytesIO(data) if isinstance(data, bytes) else data, mode="r:") as archive:
        for member in archive:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if member.isfile():
                spans[_plain(member.name)] = (member.offset_data, member.offset_data + member.size)
            elif member.isdir():
                folders.append(_plain(member.name))
    # tarfile accepts an archive that was truncated between two members; a complete one ends in zeros.
    if data[end : end + tarfile.BLOCKSIZE] != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")

    def read(member: str) -> bytes:
        first, last = spans[member]
        return data[first:last]

    return Container(str(path), tuple(spans), tuple(folders), read)


def _open_zip(path: Path) -> Container:
    archive = zipfile.ZipFile(path)
    names = {_plain(name): name for name in archive.namelist() if not name.endswith("/")}
    folders = tuple(_plain(name) for name in archive.namelist() if name.endswith("/"))

    def read(member: str) -> bytes:
        try:
            return archive.read(names[member])
        except (
            OSError,
            EOFError,
            zlib.error,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise DataError(
                f"{path}:{member}: damaged or encrypted ({error}); write the archive again"
            ) from error

    return Container(str(path), tuple(names), folders, read)


def _plain(member: str) -> str:
    """The path without ``.`` and ``/`` components: ``cat/1.png`` for ``./cat/1.png``, as many archives have it."""
    return "/".join(part for part in PurePosixPath(member).parts if part not in (".", "/"))
