"""Reads text, JSON and JSON lines of files that may be damaged, and digests by which damage is found.

Every function raises :class:`ValueError` with the reason as a clause, such as ``cannot be read (Permission denied)``;
the caller knows the path and what to do.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.files import parse_json, text_digest
from trilemma.limits import LOG_LINE, TEXT, Limit

# Lines that are wrong before the rest of a file is not looked at.
_MOST_PROBLEMS = 1000
_CHUNK_BYTES = 1 << 20
# Key of a JSON object with the digest of the others.
DIGEST = "digest"
# Beginning of the first line of a text with a digest.
_DIGEST_LINE = "# digest: "


def present(path: Path) -> bool:
    """Returns whether there is anything of this name, also a link to a file that does not exist."""
    return os.path.lexists(path)


def read_bytes(path: Path, limit: Limit = TEXT) -> bytes:
    """Returns the content of a regular file; a pipe or a device is refused, because reading it may never end.

    Raises:
        ValueError: the file cannot be read, is no regular file, or is larger than ``limit``.
    """
    size = regular_size(path)
    if size > limit.value:
        raise ValueError(f"has {limit.excess(size)}")
    with _reading():
        return path.read_bytes()


@contextmanager
def _reading() -> Iterator[None]:
    """Context that raises :class:`ValueError` with the reason instead of an :class:`OSError`."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None


def regular_size(path: Path) -> int:
    """Returns the bytes of a regular file, from which reading always ends.

    Raises:
        ValueError: a folder, a pipe or a device; or the path cannot be read.
    """
    with _reading():
        status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")
    return status.st_size


def _lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a regular file of any size, with their ends."""
    regular_size(path)
    with _reading(), path.open("rb") as file:
        while line := file.readline(LOG_LINE.value + 1):
            if len(line) > LOG_LINE.value:
                raise ValueError(f"has {LOG_LINE.excess(None)}")
            yield line


def count_lines(path: Path, part: bytes) -> int:
    """Returns the number of lines that contain these bytes, which may be none.

    Raises:
        ValueError: as of :func:`read_json_lines`.
    """
    regular_size(path)
    count = 0
    with _reading(), path.open("rb") as file:
        # Lines are looked at only where the bytes are: a file of the shortest lines has 30 million in 100 MB.
        while chunk := file.read(_CHUNK_BYTES):
            chunk += file.readline(LOG_LINE.value)
            if part in chunk:
                count += sum(part in line for line in chunk.removesuffix(b"\n").split(b"\n"))
    return count


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        UnicodeError: another encoding.
        ValueError: as of :func:`read_bytes`.
    """
    return _decode(read_bytes(path))


def _check_not_utf16(content: bytes) -> None:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnicodeError("is UTF-16 text")


def _decode(content: bytes) -> str:
    _check_not_utf16(content)
    if (zero := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, zero) + 1
        raise UnicodeError(f"line {line}: NUL is a control character, as in UTF-16 without a byte order mark")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnicodeError(f"line {line} is not UTF-8 (byte 0x{content[error.start]:02x})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file, without its digest.

    Raises:
        ValueError: as of :func:`read_text`; or not a JSON object, or one that does not match its digest.
    """
    return _object(read_text(path))


def _object(text: str) -> dict[str, Any]:
    if not text.strip():
        raise ValueError("is empty")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")
    stored = content.pop(DIGEST, None)
    if stored is not None and stored != _digest(content):
        raise ValueError("damaged or edited: its content does not match the digest stored in it")
    return content


@dataclass(frozen=True)
class Lines:
    """The objects of a JSON lines file.

    Attributes:
        records: the objects.
        problems: what is wrong with other lines, such as ``line 3 is not JSON (...)``.
        incomplete: whether the last line has no end, as a killed process leaves it.
        count: number of all other lines that are not blank, also of those that were passed over.
    """

    records: list[dict[str, Any]]
    problems: list[str]
    incomplete: bool
    count: int


def read_json_lines(
    path: Path,
    check: Callable[[Mapping[str, Any]], None] | None = None,
    skip: Callable[[bytes], bool] | None = None,
) -> Lines:
    """Returns the objects of a JSON lines file, without their digests.

    Args:
        path: the file, of any size.
        check: raises :class:`ValueError` with the reason for an object that is refused.
        skip: returns whether a line is passed over, unread; called with each line in turn.

    Raises:
        ValueError: no regular file, one that cannot be read, a line that is too long, more than 1,000 damaged lines,
            or UTF-16 text.
    """
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    incomplete, found = False, 0
    for number, line in enumerate(_lines_of(path), 1):
        if number == 1:
            _check_not_utf16(line)
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        found += 1
        if skip is not None and skip(line):
            continue
        try:
            record = _object(_decode(line.removesuffix(b"\n")))
            if check is not None:
                check(record)
        except ValueError as error:
            if line.endswith(b"\n"):
                problems.append(f"line {number} {str(error).removeprefix('line 1 ')}")
            else:
                incomplete, found = True, found - 1
            if len(problems) > _MOST_PROBLEMS:
                raise ValueError(f"has more than {_MOST_PROBLEMS:,} damaged lines: {problems[0]}") from None
            continue
        records.append(record)
    return Lines(records, problems, incomplete, found)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with a digest of its content, which the functions above verify.

    It holds what a reader of its text gets: lists instead of tuples, texts as keys.
    """
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return {**plain, DIGEST: _digest(plain)}


def _digest(content: Mapping[str, Any]) -> str:
    return text_digest(json.dumps({key: content[key] for key in content if key != DIGEST}, sort_keys=True))


def sealed_text(text: str) -> str:
    """Returns a text with its digest in a line before it, a comment in YAML."""
    return f"{_DIGEST_LINE}{text_digest(text)}\n{text}"


def is_sealed(text: str) -> bool:
    """Whether a text begins with a digest, right or wrong, as :func:`sealed_text` writes it."""
    return text.startswith(_DIGEST_LINE)


def unsealed_text(text: str) -> str:
    """Returns the text that :func:`sealed_text` was given; a text without a digest as it is.

    Raises:
        ValueError: the text does not match its digest.
    """
    # Version control may have changed the line ends.
    plain = text.replace("\r\n", "\n")
    if not is_sealed(plain):
        return plain
    first, _, body = plain.partition("\n")
    if first.removeprefix(_DIGEST_LINE).strip() != text_digest(body):
        raise ValueError("damaged or edited: it does not match the digest in its first line")
    return body
