"""Containers of image files: a folder, a tar (plain or gzip) or a zip, read without unpacking."""

from __future__ import annotations

import gzip
import mmap
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from trilemma.data.left_out import LeftOut
from trilemma.errors import DataError
from trilemma.files import is_zip
from trilemma.limits import IMAGE_FILE, check_expansion
from trilemma.text_files import regular_size

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
_NPZ = ".npz"


# Links are followed this often to reach a file, as by Linux.
_MAX_LINKS = 40
_LOOP = "a link to a folder above it"
_COUNTED = "a link to a folder that is counted already"
_NOWHERE = "a link to nothing in the archive"
_SPECIAL = "no regular file"
# Longest header in a tar, and longest path of a link in a zip: paths have 4,096 bytes at most.
_LONGEST_HEADER = 1 << 16
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Container:
    """The files of a folder or archive.

    Attributes:
        where: path of the container, for messages.
        files: paths of the files, relative and ``/``-separated; links to files are files.
        folders: paths of the folders; an archive may list only some.
        read: returns the bytes of one of ``files``, or as many of the first as the second argument says; raises
            :class:`DataError` if it cannot be read.
        identity: equal for two of ``files`` if one is a link to the other.
        left_out: links and special files that are not among ``files``.
    """

    where: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    read: Callable[[str, int | None], bytes]
    identity: Callable[[str], Hashable]
    left_out: LeftOut


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
            return _open_tar(path, decompressed(path))
        if path.name.lower().endswith(".tar"):
            with path.open("rb") as stream:
                return _open_tar(path, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    raise _unknown_kind(path)


def _damaged(path: Path, problem: object) -> DataError:
    return DataError(f"{path}: truncated or damaged archive ({problem}); get it again")


def _unknown_kind(path: Path) -> DataError:
    return DataError(f"{path}: unknown kind of file; give a folder, {', '.join(SUFFIXES)} or {_NPZ}")


def check_kind(path: Path) -> None:
    """Checks by a few bytes that a file is of the kind that its name says, before all of it is read for a digest.

    Raises:
        DataError: it is not, or of an unknown kind, or cannot be read.
    """
    name, problem = path.name.lower(), ""
    try:
        with path.open("rb") as stream:
            first = stream.read(tarfile.BLOCKSIZE)
            if name.endswith((".zip", _NPZ)):
                problem = "" if is_zip(stream) else "no zip file"
            elif name.endswith((".tar.gz", ".tgz")):
                problem = "" if first.startswith(b"\x1f\x8b") else "no gzip file"
            elif name.endswith(".tar"):
                tarfile.TarInfo.frombuf(first, tarfile.ENCODING, "surrogateescape")
            else:
                raise _unknown_kind(path)
    except (OSError, tarfile.TarError) as error:
        problem = str(error)
    if problem:
        raise _damaged(path, problem)


def decompressed(path: Path) -> bytes:
    """The content of a gzip file, with its length and CRC verified.

    Raises:
        DataError: it decompresses to more than data do (:data:`trilemma.limits.EXPANSION`).
        OSError, EOFError, zlib.error: it is damaged or cannot be read.
    """
    chunks, size = [], 0
    with path.open("rb") as file, gzip.open(file) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            chunks.append(chunk)
            size += len(chunk)
            check_expansion(size, file.tell(), str(path))
    return b"".join(chunks)


def read_file(path: Path, where: str, count: int | None = None) -> bytes:
    """The content of an image file, or its first ``count`` bytes.

    Raises:
        DataError: it cannot be read, is no regular file, or is larger than an image file.
    """
    try:
        size = regular_size(path)
        if count is None:
            IMAGE_FILE.check(size, where)
        with path.open("rb") as stream:
            return stream.read(IMAGE_FILE.value if count is None else count)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); check the file") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}; check the file") from None


@dataclass(frozen=True)
class Tree:
    """The content of a folder and its subfolders, without hidden ones.

    Attributes:
        files: path relative to the folder, to the status of the file; ``None`` for a link to nothing.
        folders: paths of the subfolders.
        left_out: folders that are reached a second time, and special files.
    """

    files: dict[str, os.stat_result | None]
    folders: list[str]
    left_out: LeftOut


def walk_folder(root: Path) -> Tree:
    """Lists a folder. Links are followed, but every folder is listed once, at its own place rather than at a link.

    Raises:
        DataError: a folder cannot be read.
    """
    tree = Tree({}, [], LeftOut())
    folders, links = deque([""]), deque[str]()
    listed: set[tuple[int, int]] = set()
    # Links wait until all other folders are listed.
    while folders or links:
        relative = (folders or links).popleft()
        path = root / relative
        try:
            status = path.stat()
            key = (status.st_dev, status.st_ino)
            # The root may be a link to anywhere.
            above = bool(relative) and _is_above(path)
            if above or key in listed:
                tree.left_out.add(_LOOP if above else _COUNTED, relative)
                continue
            listed.add(key)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        if relative:
            tree.folders.append(relative)
        for entry in entries:
            name = f"{relative}/{entry.name}" if relative else entry.name
            file_status = _status(entry)
            if file_status is not None and stat.S_ISDIR(file_status.st_mode):
                if not is_hidden(entry.name):
                    (links if entry.is_symlink() else folders).append(name)
            elif file_status is not None and not stat.S_ISREG(file_status.st_mode):
                tree.left_out.add(_SPECIAL, name)
            else:
                tree.files[name] = file_status
    return tree


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The status of a file, or of the target of a link; ``None`` for a link to nothing, an error when it is read."""
    try:
        return entry.stat()
    except OSError:
        return None


def _is_above(link: Path) -> bool:
    """Whether the path is a link to a folder that contains the link."""
    if not link.is_symlink():
        return False
    target, place = os.path.realpath(link), os.path.realpath(link.parent)
    return os.path.commonpath((target, place)) == target


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden."""
    return name.startswith(".") or name == "__MACOSX"


def _open_folder(root: Path) -> Container:
    tree = walk_folder(root)

    def read(member: str, count: int | None = None) -> bytes:
        return read_file(root / member, str(root / member), count)

    def identity(member: str) -> Hashable:
        status = tree.files[member]
        return member if status is None else (status.st_dev, status.st_ino)

    return Container(str(root), tuple(tree.files), tuple(tree.folders), read, identity, tree.left_out)


def _follow(links: dict[str, str], files: Iterable[str], left_out: LeftOut) -> dict[str, str]:
    """The file that each link in an archive leads to; links that lead to none are added to ``left_out``.

    Args:
        links: path of a link to the path of its target.
        files: paths of the files.
        left_out: links to folders, which are in the archive themselves, and links out of the archive.
    """
    known = set(files)
    folders = {str(parent) for file in known for parent in PurePosixPath(file).parents}
    targets: dict[str, str] = {}
    for link in links:
        path: str | None = link
        for _ in range(_MAX_LINKS):
            if path is None or path in known or path in folders:
                break
            path = _step(path, links)
        if path in known:
            targets[link] = str(path)
        elif path is not None and path in folders:
            above = path == "." or f"{link}/".startswith(f"{path}/")
            left_out.add(_LOOP if above else _COUNTED, link)
        else:
            left_out.add(_NOWHERE, link)
    return targets


def _step(path: str, links: dict[str, str]) -> str | None:
    """The path after the first link in it is replaced by its target; ``None`` without a link."""
    parts = PurePosixPath(path).parts
    for count in range(1, len(parts) + 1):
        head = "/".join(parts[:count])
        if head in links:
            return posixpath.normpath("/".join((links[head], *parts[count:])))
    return None


class _Headers:
    """The content of a tar for :mod:`tarfile`, which gets headers only: one may claim to be as long as the file."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data, self._position = data, 0

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a file name of {size:,} bytes")
        chunk = self._data[self._position : self._position + size]
        self._position += len(chunk)
        return chunk

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def _open_tar(path: Path, data: bytes | mmap.mmap) -> Container:
    spans: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    folders, end, left_out = [], 0, LeftOut()
    with tarfile.open(fileobj=cast("IO[bytes]", _Headers(data)), mode="r:") as archive:
        for member in archive:
            name = _plain(member.name)
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if member.isfile():
                spans[name] = (member.offset_data, member.offset_data + member.size)
            elif member.isdir():
                folders.append(name)
            elif member.islnk():
                links[name] = _plain(member.linkname)
            elif member.issym():
                links[name] = _target(name, member.linkname)
            else:
                left_out.add(_SPECIAL, name)
    # tarfile accepts an archive that was truncated between two members; a complete one ends in zeros.
    if data[end : end + tarfile.BLOCKSIZE] != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")
    spans |= {link: spans[file] for link, file in _follow(links, spans, left_out).items()}

    def read(member: str, count: int | None = None) -> bytes:
        first, last = spans[member]
        if count is None:
            IMAGE_FILE.check(last - first, f"{path}:{member}")
        return data[first : last if count is None else min(last, first + count)]

    def identity(member: str) -> Hashable:
        return (str(path), spans[member])

    return Container(str(path), tuple(spans), tuple(folders), read, identity, left_out)


def _open_zip(path: Path) -> Container:
    try:
        archive = zipfile.ZipFile(path)
        members = {_plain(info.filename): info for info in archive.infolist() if not info.is_dir()}
        folders = tuple(_plain(info.filename) for info in archive.infolist() if info.is_dir())
    except OSError:
        raise
    # zipfile raises many kinds of exceptions for a damaged file.
    except Exception as error:
        raise zipfile.BadZipFile(str(error)) from error
    left_out = LeftOut()

    def read_info(info: zipfile.ZipInfo, count: int | None = None) -> bytes:
        if count is None:
            IMAGE_FILE.check(info.file_size, f"{path}:{info.filename}")
            check_expansion(info.file_size, info.compress_size, f"{path}:{info.filename}")
        try:
            with archive.open(info) as stream:
                return stream.read(-1 if count is None else count)
        except Exception as error:
            raise DataError(
                f"{path}:{info.filename}: damaged or encrypted ({error}); write the archive again"
            ) from error

    # The upper half of the attributes is the file mode of Unix; the content of a link is the path of its target.
    symbolic = {name: info for name, info in members.items() if stat.S_ISLNK(info.external_attr >> 16)}
    links = {
        name: _target(name, os.fsdecode(read_info(info, _LONGEST_HEADER))) for name, info in symbolic.items()
    }
    members = {name: info for name, info in members.items() if name not in symbolic}
    members |= {link: members[file] for link, file in _follow(links, members, left_out).items()}

    def read(member: str, count: int | None = None) -> bytes:
        return read_info(members[member], count)

    def identity(member: str) -> Hashable:
        return (str(path), members[member].header_offset)

    return Container(str(path), tuple(members), folders, read, identity, left_out)


def _target(link: str, text: str) -> str:
    """The path in the archive that a symbolic link leads to; begins with ``..`` or ``/`` if it leads out."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), text))


def _plain(member: str) -> str:
    """The path without ``.`` and ``/`` components: ``cat/1.png`` for ``./cat/1.png``, as many archives have it."""
    return "/".join(part for part in PurePosixPath(member).parts if part not in (".", "/"))
