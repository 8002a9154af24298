"""File formats: atomic writes, and safetensors files of tensors with a JSON header. No pickle, no code."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilemma.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Prefixes of format names: the current one first. Until November 2026 the project was called ebat; its formats differ
# only in the prefix.
PREFIXES = ("trilemma-", "ebat-")
_CHUNK_BYTES = 1 << 22


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A context for an atomic write: the body writes to a temporary path, which then replaces ``path``.

    A reader sees either the old file or the complete new one. If the body raises, the temporary file is removed. The
    folder of ``path`` is created if it does not exist.

    Args:
        path: the file to write.
        sync: flush the content to the disk before replacing ``path``, so that it survives a power failure.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    """Writes ``text`` as UTF-8, atomically (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def dark_path(path: Path) -> Path:
    """The path of the dark version of a figure: ``NAME-dark.png`` for ``NAME.png``."""
    return path.with_name(f"{path.stem}-dark{path.suffix}")


@dataclass(frozen=True)
class TensorFormat:
    """A format of safetensors files: named tensors, and a JSON value (the header) in the metadata.

    Attributes:
        name: name of the format, without the prefix.
        version: version of files that are written; files of a later version are refused.
        foreign: error text for a safetensors file of another format.
        damaged: error text for a file that is not safetensors, or is truncated.
        advice: remedy in the error for a file that cannot be written.
        key: metadata key of the JSON value.
        older: error text for an earlier version; ``None`` if earlier versions can be read.
    """

    name: str
    version: int
    foreign: str
    damaged: str
    advice: str
    key: str = "header"
    older: str | None = None

    def write(self, path: Path, tensors: Mapping[str, Tensor], header: Any, *, sync: bool = False) -> None:
        """Writes ``tensors`` and ``header`` atomically (see :func:`replacing`).

        Raises:
            CheckpointError: the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        metadata = {
            "format": PREFIXES[0] + self.name,
            "version": str(self.version),
            self.key: json.dumps(header),
        }
        # Each tensor is copied, since safetensors refuses tensors that share memory (tied weights) and strided views.
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        try:
            with replacing(path, sync=sync) as temporary:
                save_file(copies, temporary, metadata)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path}: cannot be written ({reason}); {self.advice}") from None

    def read(self, path: Path) -> tuple[Any, dict[str, Tensor]]:
        """Returns the header and the tensors of the file ``path``.

        Raises:
            CheckpointError: another format, a version that cannot be read, or a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self._check(path, metadata)
                names = file.keys()
                # Cloned, since the tensors are otherwise mapped to the file, which a later write may replace.
                return json.loads(metadata[self.key]), {name: file.get_tensor(name).clone() for name in names}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {self.damaged.format(error=error)}") from None

    def read_header(self, path: Path) -> Any:
        """Returns the header only, without importing torch or safetensors.

        Raises:
            CheckpointError: see :meth:`read`.
        """
        try:
            metadata = _metadata(path)
            self._check(path, metadata)
            return json.loads(metadata[self.key])
        except (OSError, ValueError, struct.error, KeyError) as error:
            raise CheckpointError(f"{path}: {self.damaged.format(error=error)}") from None

    def matches(self, path: Path) -> bool:
        """Whether ``path`` is a file of this format, of any version."""
        try:
            return self._has_format(_metadata(path))
        except (OSError, ValueError, struct.error):
            return False

    def _has_format(self, metadata: Mapping[str, str]) -> bool:
        """Whether the metadata are those of a file of this format, of any version."""
        return metadata.get("format") in [prefix + self.name for prefix in PREFIXES]

    def _check(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Raises :class:`CheckpointError` unless the file has this format and a version that can be read."""
        if not self._has_format(metadata):
            raise CheckpointError(f"{path}: {self.foreign}")
        version = int(metadata["version"])
        if version > self.version:
            raise CheckpointError(
                f"{path}: format version {version}, but this trilemma reads up to {self.version}; upgrade trilemma"
            )
        if version < self.version and self.older is not None:
            raise CheckpointError(f"{path}: format version {version} {self.older}")


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` begins with the header of a safetensors file."""
    try:
        _metadata(path)
    except (OSError, ValueError, struct.error):
        return False
    return True


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file: an 8-byte length, then JSON of that length.

    Raises:
        OSError: the file cannot be read.
        ValueError, struct.error: it is not a safetensors file.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("not a safetensors file")
        content = json.loads(file.read(length))
    if not isinstance(content, dict):
        raise ValueError("not a safetensors file")
    metadata: dict[str, str] = content.get("__metadata__") or {}
    return metadata


# The format of classifier files; run folders are listed by reading only the header.
CLASSIFIER = TensorFormat(
    name="classifier",
    version=1,
    foreign="safetensors weights without trilemma's header; build the network and wrap it: "
    "trilemma.Classifier(network, ...)",
    damaged="not a classifier file, or cut short; copy it again or train again",
    advice="choose another path",
)
