"""Checksums of files: what an archive is, whatever it is called."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trilemma.errors import DataError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits.

    Raises:
        DataError: it cannot be read.
    """
    return _digest(path, "sha256")


def _digest(path: Path, kind: str) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, kind).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def verify_checksum(path: Path, expected: str) -> None:
    """Compare a file with an MD5 (32 hex digits) or SHA-256 (64).

    Raises:
        DataError: they differ.
    """
    kind = "md5" if len(expected) == 32 else "sha256"
    found = _digest(path, kind)
    if found != expected:
        raise DataError(
            f"{path}: wrong checksum ({kind} {found}, expected {expected}); "
            "the file is cut short, damaged or another release: get it again"
        )
