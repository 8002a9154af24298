"""Files: atomic writes, and tensors with a JSON header in one safetensors file. No pickle, no code."""

from __future__ import annotations

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

# Until November 2026 the project was called ebat; formats of that name are the same in all but the name.
PREFIXES = ("trilemma-", "ebat-")


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` in one step, or vanishes if the body fails.

    A reader sees the old file or the new one. The folder of ``path`` is made if it is missing.

    Args:
        path: the file to write.
        sync: flush the content to the disk before the name changes, so that it survives a power cut.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def dark_path(path: Path) -> Path:
    """The dark twin of a figure: ``NAME-dark.png`` beside ``NAME.png``."""
    return path.with_name(f"{path.stem}-dark{path.suffix}")


@dataclass(frozen=True)
class TensorFormat:
    """One kind of safetensors file: named tensors, and a JSON value in its metadata.

    Attributes:
        name: of the format, after the project's name.
        version: of files that are written; files of a later one are refused.
        key: metadata key of the JSON value.
        foreign: error text for a safetensors file of another format.
        damaged: error text for a file that is not safetensors, or is cut short.
        advice: what to do where the file cannot be written.
        older: error text for an earlier version; ``None`` where those are read too.
    """

    name: str
    version: int
    foreign: str
    damaged: str
    advice: str
    key: str = "header"
    older: str | None = None

    def write(self, path: Path, tensors: Mapping[str, Tensor], header: Any, *, sync: bool = False) -> None:
        """Writes ``tensors`` and ``header`` atomically.

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
        # a copy per tensor: safetensors refuses tied weights and strided views, and the file must hold both
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        try:
            with replacing(path, sync=sync) as temporary:
                save_file(copies, temporary, metadata)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path}: cannot be written ({reason}); {self.advice}") from None

    def read(self, path: Path) -> tuple[Any, dict[str, Tensor]]:
        """The header and the tensors of ``path``.

        Raises:
            CheckpointError: another format, a version that cannot be read, or a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self._check(path, metadata)
                names = file.keys()  # a file is not iterable itself
                # clone: the tensors would otherwise map the file, which the next write replaces
                return json.loads(metadata[self.key]), {name: file.get_tensor(name).clone() for name in names}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {self.damaged.format(error=error)}") from None

    def read_header(self, path: Path) -> Any:
        """The header alone. Needs neither torch nor safetensors.

        Raises:
            CheckpointError: as of :meth:`read`.
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
            return self._is_own(_metadata(path))
        except (OSError, ValueError, struct.error):
            return False

    def _is_own(self, metadata: Mapping[str, str]) -> bool:
        return metadata.get("format") in [prefix + self.name for prefix in PREFIXES]

    def _check(self, path: Path, metadata: Mapping[str, str]) -> None:
        if not self._is_own(metadata):
            raise CheckpointError(f"{path}: {self.foreign}")
        version = int(metadata["version"])
        if version > self.version:
            raise CheckpointError(
                f"{path}: format version {version}, but this trilemma reads up to {self.version}; upgrade trilemma"
            )
        if version < self.version and self.older is not None:
            raise CheckpointError(f"{path}: format version {version} {self.older}")


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` begins as a safetensors file does."""
    try:
        _metadata(path)
    except (OSError, ValueError, struct.error):
        return False
    return True


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file: an 8-byte length, then JSON of that length.

    Raises:
        OSError: the file cannot be read.
        ValueError, struct.error: it is no such file.
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


# The file of a finished classifier; run folders are read for its header alone.
CLASSIFIER = TensorFormat(
    name="classifier",
    version=1,
    foreign="safetensors weights without trilemma's header; build the network and wrap it: "
    "trilemma.Classifier(network, ...)",
    damaged="not a classifier file, or cut short; copy it again or train anew",
    advice="choose another place",
)
