"""The exceptions of this package: one class per kind of user error. A message is one line: what, where, what to do.

The command line prints the message of a :class:`UserError` and exits with code 2; for :class:`TrainingFailedError` with
code 3. Any other exception is a bug and is shown with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrilemmaError(Exception):
    """Base class of all exceptions that this package defines."""


class UserError(TrilemmaError):
    """An error that the caller can correct; the message says how."""


class ConfigError(UserError):
    """A key, override, option or combination of options is unknown, of the wrong type, or invalid."""


class UnknownNameError(UserError):
    """A name that is in no registry."""


class DataError(UserError):
    """A data source is missing, truncated, has a wrong checksum, or is not in a known layout."""


class ImageError(UserError):
    """Images that a classifier does not accept: wrong range, type, channels or size, or NaN."""


class CheckpointError(UserError):
    """A checkpoint file that is missing, of another or newer format, damaged, or does not fit the network."""


class RunError(UserError):
    """A run folder that already exists, is missing, or cannot be written."""


class MissingExtraError(UserError):
    """An optional dependency is not installed; the message has the extra to install."""


class TrainingFailedError(TrilemmaError):
    """Training failed and no remedy is left. The best checkpoint is kept."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The text ``" Did you mean 'x'?"`` with the most similar of ``names``; empty if none is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
