"""Downloads of archives: resumable, verified by checksum, and stored under the final name only when complete."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from trilemma.errors import DataError
from trilemma.files import file_digest
from trilemma.progress import bar, can_draw
from trilemma.storing import not_stored


def verify_checksum(path: Path, expected: str) -> None:
    """Checks that a file has the checksum ``expected``, an MD5 (32 hex digits) or a SHA-256 (64).

    Raises:
        DataError: the checksums differ, or the file cannot be read.
    """
    kind = "md5" if len(expected) == 32 else "sha256"
    actual = file_digest(path, kind)
    if actual != expected:
        raise DataError(
            f"{path}: wrong checksum ({kind} {actual}, expected {expected}); "
            "the file is truncated, damaged or another release: get it again"
        )


TIMEOUT_SECONDS = 30.0
ATTEMPTS = 3
_CHUNK = 1 << 18


def fetch(url: str, target: Path, checksum: str) -> None:
    """Downloads ``url`` to ``target`` and verifies it; does nothing if ``target`` exists.

    The content is written to ``target.part``. After a lost connection the next attempt, or the next call, resumes from
    that file. A complete file with the wrong checksum is removed.

    Args:
        url: http or https address.
        target: final path; its folder is created.
        checksum: MD5 or SHA-256 in hex.

    Raises:
        DataError: no connection, no such file on the server, a connection that is lost in every attempt, or a wrong
            checksum.
        NotStoredError: the file cannot be written; what was received of it stays, for the next attempt.
    """
    if target.exists():
        return
    part = target.with_name(target.name + ".part")
    reason = "the connection was cut"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            try:
                if _receive(url, part):
                    break
            except urllib.error.HTTPError as error:
                raise DataError(
                    f"{url}: the server answers {error.code} {error.reason}; {_by_hand(target)}"
                ) from error
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                TimeoutError,
                ConnectionError,
                ssl.SSLError,
            ) as error:
                reason = str(getattr(error, "reason", error))
        else:
            raise DataError(f"{url}: {reason}; run again to resume the download, or {_by_hand(target)}")
        _accept(part, target, checksum)
    except OSError as error:
        raise not_stored(target, error, "set TRILEMMA_CACHE to another folder") from error


def _by_hand(target: Path) -> str:
    """The remedy of a failed download, for error messages."""
    return f"get {target.name} by other means and set data.root to its folder"


def _receive(url: str, part: Path) -> bool:
    """Downloads the missing bytes of ``part``; returns whether the file is now complete."""
    size = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        # Range not satisfiable: the part has at least as many bytes as the file; the checksum decides.
        if error.code == 416:
            return True
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {size}-"
        )
        size = size if resumed else 0
        length = response.headers.get("Content-Length")
        total = size + int(length) if length is not None else None
        with (
            part.open("ab" if resumed else "wb") as stream,
            bar(part.stem, total, can_draw(), unit="bytes") as advance,
        ):
            advance(size)
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                advance(len(chunk))
    return total is None or part.stat().st_size == total


def _accept(part: Path, target: Path, checksum: str) -> None:
    """Renames ``part`` to ``target`` if its checksum is right; removes it and raises :class:`DataError` if not."""
    try:
        verify_checksum(part, checksum)
    except DataError:
        # Removed, since a resumed download would append to damaged content.
        part.unlink()
        raise
    os.replace(part, target)
