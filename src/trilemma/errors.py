"""One exception per kind of user mistake; each message is one line: what, where, what to do.

The command line turns every :class:`UserError` into that line and exit code 2, and
:class:`TrainingFailedError` into exit code 3. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrilemmaError(Exception):
    """Base of every exception this package raises on purpose."""


class UserError(TrilemmaError):
    """Something the caller can put right; the message says how."""


class ConfigError(UserError):
    """A recipe, an override or an option is unknown, of the wrong type, or impossible."""


class UnknownNameError(UserError):
    """A name that no registry row has."""


class DataError(UserError):
    """A data source is missing, truncated, altered or not in a known layout."""


class ImageError(UserError):
    """Images that a classifier cannot take: range, type, channels, size or NaN."""


class CheckpointError(UserError):
    """A file that is not a checkpoint of ours, is of a newer format, or does not fit the network."""


class RunError(UserError):
    """A run folder that exists already, is missing, or cannot be written."""


class MissingExtraError(UserError):
    """An optional dependency is needed; the message names the extra to install."""


class TrainingFailedError(TrilemmaError):
    """Training failed and every remedy was used. The best checkpoint is kept."""


def nearest(name: str, names: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest of ``names``, or an empty string."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
