"""File formats: atomic writes, digests, and safetensors files of tensors with a JSON header. No pickle, no code."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from trilemma.errors import CheckpointError, DamagedError, DataError, NotStoredError
from trilemma.headers import ClassifierHeader, problem
from trilemma.limits import HEADER, check_expansion
from trilemma.storing import discard, not_stored

if TYPE_CHECKING:
    from torch import Tensor

# Prefixes of format names: the current one first. Until November 2026 the project was called ebat; its formats differ
# only in the prefix.
PREFIXES = ("trilemma-", "ebat-")
_CHUNK_BYTES = 1 << 22
# Ending of an array in an .npz, and the longest header of one: NumPy writes 128 bytes.
_NPY = ".npy"
_LONGEST_NPY_HEADER = 10_000
# Pattern of the names of temporary files (:func:`replacing`).
TEMPORARY = ".*.tmp"
# File systems allow 255 bytes; names of temporary files are longer than those of the files.
_LONGEST_NAME = 200
# Deepest nesting of JSON that is read; what this package writes has less than ten levels.
_DEEPEST = 64
# Digits of the largest integer of JSON that is read: those of 64 bits.
_LONGEST_INTEGER = 20
# Metadata keys of a file of tensors: the digest of its tensors, and that of all other metadata.
_TENSORS_DIGEST, _METADATA_DIGEST = "tensors", "digest"
_DIGEST_PREFIX = "crc32:"
# Of digests of tensors that are summed first; files of earlier versions have those of all bytes.
_SUMS_PREFIX = "crc32-of-sums:"
# Tensors from so many bytes on are summed in blocks of rows of 512 words, which are 4 KiB.
_LEAST_SUMMED, _ROW_WORDS, _BLOCK_ROWS = 1 << 15, 512, 256
_VERSION = re.compile("[0-9]{1,9}")
# The type of the validated header of a format.
H = TypeVar("H")


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A context for an atomic write: the body writes to a temporary path, which then replaces ``path``.

    A reader sees either the old file or the complete new one. If the body raises, the temporary file is removed. The
    folder of ``path`` is created if it does not exist.

    Args:
        path: the file to write.
        sync: flush the content to the disk before replacing ``path``, so that it survives a power failure.

    Raises:
        NotStoredError: the folder or the file cannot be written, or ``path`` is a device. An :class:`OSError` that the
            body raises about another file is not changed.
    """
    temporary = path.with_name(f".{_short(path.name)}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file would take the place of the device, such as /dev/null, for all programs.
        if not path.is_symlink() and (path.is_char_device() or path.is_block_device()):
            raise NotStoredError(str(path), "a device", "choose another path")
        yield temporary
        if sync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        place = None if error.filename is None else Path(os.fsdecode(error.filename))
        if place in (None, temporary, path, *path.parents):
            raise not_stored(path, error) from error
        raise
    finally:
        discard(temporary)


def _short(name: str) -> str:
    """A file name, or a digest of one so long that a longer name could be too long."""
    return name if len(os.fsencode(name)) <= _LONGEST_NAME else f"{zlib.crc32(os.fsencode(name)):08x}"


def reserve(path: Path) -> None:
    """Allocates the disk space of a sparse file, so that writing to a memory map of it cannot run out of space.

    Args:
        path: a file of its final size that reads as zeros where it has not been written.

    Raises:
        OSError: the disk is full, or a quota is used up.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                # The file system cannot do it; a full disk is reported.
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        # Reading and writing every byte allocates all blocks and changes nothing.
        while chunk := file.read(_CHUNK_BYTES):
            file.seek(-len(chunk), os.SEEK_CUR)
            file.write(chunk)
            file.flush()


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically (see :func:`replacing`).

    A file name that is not UTF-8 holds surrogates, which UTF-8 cannot; they are written as ``\\udcff``.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes NumPy arrays by name as a compressed ``.npz``, atomically (see :func:`replacing`)."""
    import numpy as np

    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits.

    Raises:
        DataError: the file cannot be read.
    """
    return file_digest(path, "sha256")


def file_digest(path: Path, kind: str) -> str:
    """Hex digits of a file's digest of a kind that ``hashlib`` names; raises as :func:`file_sha256`."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, kind).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def is_zip(file: Path | IO[bytes]) -> bool:
    """Whether a file ends like a zip archive; also one whose directory says something impossible is none."""
    try:
        return zipfile.is_zipfile(file)
    # Of archives on several disks.
    except zipfile.BadZipFile:
        return False


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the NumPy arrays of an ``.npz`` by name; each has a CRC-32, which is verified.

    Args:
        path: the file.
        names: the arrays to read, as far as they exist; all by default.

    Raises:
        ValueError: damaged, cut short or not an ``.npz`` file, or one that holds pickled objects.
        OSError: the file cannot be read.
    """
    import numpy as np

    try:
        check_npz(path, names)
        # A stream, because NumPy does not close a damaged file that it has opened.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if names is None or name in names}
    except (OSError, DataError):
        raise
    # Any exception: a single array has no names, and NumPy parses the headers of a damaged file as Python code.
    except Exception as error:
        raise ValueError(f"damaged or not an .npz file: {error}") from None


def npz_names(path: Path) -> list[str]:
    """Returns the names of the arrays of an ``.npz``; errors as of :func:`read_npz`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(_NPY) for name in archive.namelist() if name.endswith(_NPY)]
    except OSError:
        raise
    # zipfile raises many kinds of exceptions for a damaged file.
    except Exception as error:
        raise ValueError(f"damaged or not an .npz file: {error}") from None


def check_npz(path: Path, names: Sequence[str] | None) -> None:
    """Checks, before memory is allocated, that arrays of an ``.npz`` are as large as their headers say.

    Raises:
        DataError: they decompress to more than data do (:data:`trilemma.limits.EXPANSION`).
        ValueError: they are not.
    """
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(_NPY)
            if not info.filename.endswith(_NPY) or (names is not None and name not in names):
                continue
            check_expansion(info.file_size, info.compress_size, f"{path}: {name}")
            with archive.open(info) as stream:
                _check_npy(stream, info.file_size, name)


def _check_npy(stream: IO[bytes], size: int, name: str) -> None:
    """Raises ``ValueError`` unless an array of the shape in the header takes the ``size`` bytes of its file."""
    from numpy.lib import format as npy

    version, start = npy.read_magic(stream), stream.read(4)
    # The length of the header, of two bytes in version 1.
    length = int.from_bytes(start[: 2 if version == (1, 0) else 4], "little")
    if length > _LONGEST_NPY_HEADER:
        raise ValueError(f"{name}: a header of {length:,} bytes")
    header = BytesIO(start + stream.read(length))
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(header)
    claimed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and claimed != size - npy.MAGIC_LEN - header.tell():
        raise ValueError(f"{name}: its header claims {claimed:,} bytes, but the file holds {size:,}")


def parse_json(text: str) -> Any:
    """The value of a JSON text in which no object has a key twice.

    Raises:
        ValueError: not JSON; a key that is given twice, of which Python would take the last one; an integer beyond 64
            bits, or a nesting that later code could not handle.
    """
    too_deep = ValueError("nested too deeply")
    try:
        value = json.loads(text, object_pairs_hook=_without_double_keys, parse_int=_integer)
    except RecursionError:
        raise too_deep from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _values(outer) if isinstance(inner, dict | list)]
    if level:
        raise too_deep
    return value


def _values(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return container.values()
    return container if isinstance(container, list) else ()


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _without_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return content


def dark_path(path: Path) -> Path:
    """The path of the dark version of a figure: ``NAME-dark.png`` for ``NAME.png``."""
    return path.with_name(f"{path.stem}-dark{path.suffix}")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; a contiguous tensor on the CPU is not copied."""
    import torch

    flat = tensor.detach().cpu().contiguous().view(-1)
    content: memoryview = flat.view(torch.uint8).numpy().data
    return content


def tensors_digest(tensors: Mapping[str, Tensor], prefix: str = _SUMS_PREFIX) -> str:
    """CRC-32 of names, types, shapes and content of tensors, as text: finds damage, and is no protection against fraud.

    Of large tensors it is the CRC-32 of sums (:func:`_summed`), which takes a quarter of the time of that of all bytes.

    Args:
        tensors: the tensors by name, in any order.
        prefix: kind of digest, with which the text begins.
    """
    names = sorted(tensors)
    if prefix == _DIGEST_PREFIX:
        value = 0
        for name in names:
            value = zlib.crc32(json.dumps(_kind(name, tensors[name])).encode(), value)
            value = zlib.crc32(tensor_bytes(tensors[name]), value)
    else:
        value = zlib.crc32(json.dumps([_kind(name, tensors[name]) for name in names]).encode())
        for name in names:
            value = zlib.crc32(_summed(_array(tensors[name])), value)
    return f"{prefix}{value:08x}"


def _kind(name: str, tensor: Tensor) -> list[Any]:
    return [name, str(tensor.dtype), list(tensor.shape)]


def _array(tensor: Tensor) -> Any:
    """A NumPy array of the bytes of a tensor in row-major order."""
    try:
        array = tensor.numpy()
        if array.flags.c_contiguous:
            return array
    # On another device, part of a graph, or of a type that NumPy does not have.
    except (TypeError, RuntimeError):
        pass
    import numpy as np

    return np.frombuffer(tensor_bytes(tensor), np.uint8)


def _summed(array: Any) -> Any:
    """The bytes of a small array; of a large one the sums of the 64-bit words of each column, per block of rows.

    A change of a single word always changes a sum, that of several words all but once in 2^64. An exchange of whole
    rows in a block, 4 KiB each, changes none.
    """
    if array.nbytes < _LEAST_SUMMED:
        return array
    content = array.reshape(-1).view("u1")
    end = len(content) - len(content) % (8 * _ROW_WORDS)
    rows = content[:end].view("u8").reshape(-1, _ROW_WORDS)
    # Sums wrap around, and lose nothing.
    sums = [rows[start : start + _BLOCK_ROWS].sum(0) for start in range(0, len(rows), _BLOCK_ROWS)]
    return b"".join([*sums, content[end:]])


def text_digest(text: str) -> str:
    """CRC-32 of a text, as text."""
    return f"{_DIGEST_PREFIX}{zlib.crc32(text.encode('utf-8', 'backslashreplace')):08x}"


def metadata_digest(metadata: Mapping[str, str]) -> str:
    """CRC-32 of the metadata of a file of tensors, as text, without the entry in which it is stored."""
    texts = sorted((key, value) for key, value in metadata.items() if key != _METADATA_DIGEST)
    return text_digest(json.dumps(texts))


def with_digests(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata of a file with the digest of its tensors, and that of the metadata themselves."""
    complete = {**metadata, _TENSORS_DIGEST: tensors_digest(tensors)}
    return {**complete, _METADATA_DIGEST: metadata_digest(complete)}


def intact(metadata: Mapping[str, str], tensors: Mapping[str, Tensor] | None = None) -> bool:
    """Whether metadata and, if given, tensors have the digests stored in the metadata.

    ``True`` for a file without digests, which earlier versions and other programs write.
    """
    stored = metadata.get(_METADATA_DIGEST, "")
    if not stored.startswith(_DIGEST_PREFIX):
        return True
    if metadata_digest(metadata) != stored:
        return False
    if tensors is None:
        return True
    digest = metadata.get(_TENSORS_DIGEST, "")
    return digest == tensors_digest(tensors, digest[: digest.find(":") + 1])


@dataclass(frozen=True)
class TensorFormat(Generic[H]):
    """A format of safetensors files: named tensors, and a JSON value (the header) in the metadata.

    The metadata hold a digest of the tensors and one of the header; reading verifies them. The digests find damage; a
    file from elsewhere may have right ones and any content, so the header is validated too.

    Attributes:
        name: name of the format, without the prefix.
        version: version of files that are written; files of a later version are refused.
        foreign: error text for a safetensors file of another format.
        damaged: error text for a file that is not safetensors, or is truncated.
        remedy: what to do about such a file, and about one whose content does not match its digest.
        advice: what to do about a file that cannot be written.
        validate: makes the header of its JSON value; raises ``ValueError`` for a wrong one.
        key: metadata key of the JSON value.
        older: error text for an earlier version; ``None`` if earlier versions can be read.
    """

    name: str
    version: int
    foreign: str
    damaged: str
    remedy: str
    advice: str
    validate: Callable[[Any], H]
    key: str = "header"
    older: str | None = None

    def write(self, path: Path, tensors: Mapping[str, Tensor], header: Any, *, sync: bool = False) -> None:
        """Writes ``tensors`` and ``header``, a JSON value, atomically (see :func:`replacing`).

        Raises:
            NotStoredError: the file cannot be written.
            CheckpointError: its header could not be read again.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            text = json.dumps(header)
            self.validate(json.loads(text))
        except (TypeError, ValueError) as error:
            wrong = problem(error) if isinstance(error, ValidationError) else str(error)
            raise CheckpointError(f"{path}: cannot be written ({wrong}); correct the value") from None
        metadata = {"format": PREFIXES[0] + self.name, "version": str(self.version), self.key: text}
        # Each tensor is copied, since safetensors refuses tensors that share memory (tied weights) and strided views.
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        try:
            with replacing(path, sync=sync) as temporary:
                save_file(copies, temporary, with_digests(metadata, copies))
                # safetensors does not report what the system reports when a file is closed.
                _metadata(temporary, complete=True)
        except NotStoredError as error:
            raise NotStoredError(str(path), error.reason, self.advice) from error
        except (SafetensorError, ValueError, struct.error) as error:
            raise NotStoredError(str(path), _system_words(str(error)), self.advice) from error

    def read(self, path: Path) -> tuple[H, dict[str, Tensor]]:
        """Returns the header and the tensors of the file ``path``.

        Raises:
            CheckpointError: another format, a version that cannot be read, or an invalid header.
            DamagedError: a damaged file.
        """
        from safetensors import SafetensorError

        try:
            # Checks the sizes that the file claims.
            _metadata(path, complete=True)
            with open_tensors(path) as file:
                metadata = file.metadata() or {}
                header = self._header(path, metadata)
                # Cloned, since the tensors are otherwise mapped to the file, which a later write may replace.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, TypeError, RuntimeError, struct.error, SafetensorError) as error:
            raise self._damage(path, error) from None
        if not intact(metadata, tensors):
            raise self._digest_error(path)
        return header, tensors

    def read_header(self, path: Path) -> H:
        """Returns the header only, without importing torch or safetensors.

        Raises:
            CheckpointError, DamagedError: see :meth:`read`.
        """
        try:
            return self._header(path, _metadata(path, complete=True))
        except (OSError, ValueError, struct.error) as error:
            raise self._damage(path, error) from None

    def _header(self, path: Path, metadata: Mapping[str, str]) -> H:
        """The validated header in the metadata; raises ``ValueError`` for damaged metadata, or as :meth:`read`."""
        # First, since a flipped bit in the name of the format makes the file look foreign.
        if not intact(metadata):
            raise self._digest_error(path)
        self._check(path, metadata)
        content = parse_json(metadata.get(self.key, ""))
        try:
            return self.validate(content)
        except ValidationError as error:
            raise self.invalid(path, problem(error)) from None
        except ValueError as error:
            raise self.invalid(path, str(error)) from None

    def _damage(self, path: Path, error: Exception) -> DamagedError:
        return DamagedError(f"{path}: {self.damaged.format(error=error)}; {self.remedy}")

    def invalid(self, path: Path, reason: str) -> CheckpointError:
        """The error for content that is complete, but cannot be right."""
        return CheckpointError(f"{path}: its content is invalid: {reason}; {self.remedy}")

    def matches(self, path: Path) -> bool:
        """Whether ``path`` is a file of this format, of any version."""
        try:
            return self._has_format(_metadata(path))
        except (OSError, ValueError, struct.error):
            return False

    def _digest_error(self, path: Path) -> DamagedError:
        return DamagedError(
            f"{path}: damaged: its content does not match the digest stored in it; {self.remedy}"
        )

    def _has_format(self, metadata: Mapping[str, str]) -> bool:
        """Whether the metadata are those of a file of this format, of any version."""
        return metadata.get("format") in [prefix + self.name for prefix in PREFIXES]

    def _check(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Raises :class:`CheckpointError` unless the file has this format and a version that can be read."""
        if not self._has_format(metadata):
            raise CheckpointError(f"{path}: {self.foreign}")
        text = metadata.get("version", "")
        # At most nine digits: Python reads others too, and converts none of more than 4300.
        if not _VERSION.fullmatch(text):
            raise ValueError(f"version {text[:20]!r}")
        version = int(text)
        if version > self.version:
            raise CheckpointError(
                f"{path}: format version {version}, but this trilemma reads up to {self.version}; upgrade trilemma"
            )
        if version < self.version and self.older is not None:
            raise CheckpointError(f"{path}: format version {version} {self.older}")


def _system_words(text: str) -> str:
    """The words of the system in an error text of safetensors, ``... I/O error: WORDS (os error NUMBER)``."""
    match = re.search(r"I/O error: (.*) \(os error \d+\)", text)
    return match[1] if match else text


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` begins with the header of a safetensors file."""
    try:
        _metadata(path)
    except (OSError, ValueError, struct.error):
        return False
    return True


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A context with the open safetensors file, as of ``safetensors.safe_open``."""
    from safetensors import safe_open

    with path.open("rb") as stream:
        # safetensors opens no path that is not UTF-8.
        name = str(path) if _is_utf8(str(path)) else f"/dev/fd/{stream.fileno()}"
        with safe_open(name, framework="pt") as file:
            yield file


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(path: Path, complete: bool = False) -> dict[str, str]:
    """The metadata of a safetensors file: an 8-byte length, then JSON of that length.

    Args:
        path: the file.
        complete: whether to check that the file is as long as its tensors, which are not read.

    Raises:
        OSError: the file cannot be read.
        ValueError, struct.error: it is not a safetensors file.
        CheckpointError: its header is too long.
    """
    content, start = _content(path)
    metadata = content.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("not a safetensors file")
    if complete:
        ends = [_end(entry) for name, entry in content.items() if name != "__metadata__"]
        if path.stat().st_size != start + max(ends, default=0):
            raise ValueError("cut short")
    return metadata


def _content(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON at the beginning of a safetensors file, and where its tensors begin; errors as of :func:`_metadata`."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("not a safetensors file")
        HEADER.check(length, str(path), CheckpointError)
        content = parse_json(file.read(length).decode())
    if not isinstance(content, dict):
        raise ValueError("not a safetensors file")
    return content, 8 + length


def stored_tensors(path: Path, prefix: str) -> Iterator[tuple[str, str, list[int], Iterator[bytes]]]:
    """Yields the tensors of a safetensors file whose names have a prefix, without torch.

    Yields:
        The name without the prefix, the type as the file names it, the shape, and the content in parts, which must be
        read before the next tensor; sorted by name.

    Raises:
        OSError, ValueError, struct.error, LookupError, TypeError: the file cannot be read, or is none.
    """
    content, begin = _content(path)
    with path.open("rb") as file:
        for name in sorted(name for name in content if name.startswith(prefix)):
            start, end = content[name]["data_offsets"]
            parts = _parts(file, begin + start, end - start)
            yield name.removeprefix(prefix), content[name]["dtype"], content[name]["shape"], parts


def _parts(file: IO[bytes], start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size > 0 and (part := file.read(min(size, _CHUNK_BYTES))):
        size -= len(part)
        yield part


def _end(entry: Any) -> int:
    """Where the bytes of a tensor end, of its entry in the header; raises ``ValueError`` for something else."""
    try:
        return int(entry["data_offsets"][1])
    except (TypeError, KeyError, IndexError, OverflowError):
        raise ValueError("not a safetensors file") from None


# The format of classifier files; run folders are listed by reading only the header.
CLASSIFIER = TensorFormat(
    name="classifier",
    version=1,
    foreign="safetensors weights without trilemma's header; build the network and wrap it: "
    "trilemma.Classifier(network, ...)",
    damaged="not a classifier file, or cut short",
    remedy="copy it again or train again",
    advice="choose another path",
    validate=ClassifierHeader.model_validate,
)
