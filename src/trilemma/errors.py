"""The exceptions of this package: one class per kind of user error. A message is one line: what, where, what to do.

The command line prints the message of a :class:`UserError` and exits with code 2; for :class:`TrainingFailedError` with
code 3, for :class:`NotStoredError` with code 4. Any other exception is a bug and is shown with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from sysconfig import get_path
from traceback import walk_tb

from trilemma.printing import short_line


class TrilemmaError(Exception):
    """Base class of all exceptions that this package defines.

    Its message is one line without control characters, whatever names and values are quoted in it.
    """

    def __str__(self) -> str:
        return short_line(super().__str__())


class UserError(TrilemmaError):
    """An error that the caller can correct; the message says how."""


class ConfigError(UserError):
    """A key, override, option or combination of options is unknown, of the wrong type, or invalid."""


class NetworkError(ConfigError):
    """A network raised an exception, or returned something else than one row of finite logits per image."""


class UnknownNameError(UserError):
    """A name that is in no registry."""


class DataError(UserError):
    """A data source is missing, truncated, has a wrong checksum, or is not in a known layout."""


class ImageError(UserError):
    """Images that a classifier does not accept: wrong range, type, channels or size, or NaN."""


class CheckpointError(UserError):
    """A checkpoint file that is missing, of another or newer format, damaged, or does not fit the network."""


class DamagedError(CheckpointError):
    """A checkpoint file whose content is incomplete, or does not match the digest stored in it."""


class RunError(UserError):
    """A run folder that already exists, is missing, or cannot be written."""


class NotStoredError(UserError):
    """A file that cannot be written: the disk is full or read-only, a quota is used up, or permission is missing.

    Args:
        path: the file or folder.
        reason: of the operating system.
        advice: what to do.
    """

    def __init__(self, path: str, reason: str, advice: str | None = None) -> None:
        # All arguments, so that the exception can be pickled.
        super().__init__(path, reason, advice)
        self.path, self.reason = path, reason
        self.advice = advice or "free disk space or choose another folder"

    def __str__(self) -> str:
        return f"{self.path}: cannot be written ({self.reason}); {self.advice}"


class MissingExtraError(UserError):
    """An optional dependency is not installed; the message has the extra to install."""


class ProcessLostError(UserError):
    """One of several processes ended before its work was done, for example by the system for lack of memory."""


class TrainingFailedError(TrilemmaError):
    """Training failed and no remedy is left. The best checkpoint is kept."""


def closest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of ``names``; ``None`` if none is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return matches[0] if matches else None


def nearest(name: str, names: Iterable[str]) -> str:
    """The text ``" Did you mean 'x'?"`` with the most similar of ``names``; empty if none is similar."""
    match = closest(name, names)
    return f" Did you mean {match!r}?" if match else ""


# Folders of installed packages, and prefixes of files, whose frames are not the user's code.
_INSTALLED = ("site-packages", "dist-packages")
_NOT_THE_USERS = (get_path("stdlib"), "<frozen", "<eval_with_key>")
# First words of a message that continues with a traceback; its last line is the error.
_BEFORE_TRACEBACK = "The following operation failed"
_LONGEST = 300


def describe(error: BaseException) -> str:
    """An exception in one line: its type, the main line of its message, and file and line of the user's code.

    The file is left out if no frame between the place where the exception was caught and the one where it was raised
    is the user's.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith(_BEFORE_TRACEBACK):
        lines = lines[-1:]
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    text = f"{type(error).__name__}: {first[:_LONGEST]}".removesuffix(": ")
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__", ""))
        foreign = file.startswith(_NOT_THE_USERS) or any(folder in Path(file).parts for folder in _INSTALLED)
        if not foreign and module.partition(".")[0] != __name__.partition(".")[0]:
            place = f" ({file}, line {line})"
    return text + place
