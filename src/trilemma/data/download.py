"""Downloads and checksums of archives: resumable, verified, never half a file under the final name."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from trilemma.errors import DataError
from trilemma.progress import bar, standard_error_is_a_terminal


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


TIMEOUT_SECONDS = 30.0
ATTEMPTS = 3
_CHUNK = 1 << 18


def fetch(url: str, target: Path, checksum: str) -> None:
    """Get ``url`` into ``target``, verified; nothing is done if ``target`` is there already.

    Bytes arrive in ``target.part``, which a cut connection leaves behind: the next attempt, or the next call,
    asks for the rest. A complete file with the wrong checksum is removed.

    Args:
        url: http or https address.
        target: final place; its folder is created.
        checksum: MD5 or SHA-256 in hex.

    Raises:
        DataError: no connection, no such file, a cut that did not heal, a wrong checksum, or no room.
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
        raise DataError(
            f"{target}: cannot be written ({error.strerror or error}); set TRILEMMA_CACHE"
        ) from error


def _by_hand(target: Path) -> str:
    return f"get {target.name} by other means and set data.root to its folder"


def _receive(url: str, part: Path) -> bool:
    """Append to ``part`` what is missing; True once the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond what we have: complete, or longer than the real file
            return True
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            part.open("ab" if resumed else "wb") as stream,
            bar(part.stem, total, standard_error_is_a_terminal(), unit="bytes") as advance,
        ):
            advance(have)
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                advance(len(chunk))
    return total is None or part.stat().st_size == total


def _accept(part: Path, target: Path, checksum: str) -> None:
    try:
        verify_checksum(part, checksum)
    except DataError:
        part.unlink()  # a resume would only add to damaged bytes
        raise
    os.replace(part, target)
