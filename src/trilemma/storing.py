"""What happens if a file cannot be written: one error for all causes, checks beforehand, and results without files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory

from trilemma.errors import NotStoredError, RunError
from trilemma.printing import print_message

# Causes that lie in the path itself: a component is a file, the path is a folder, or a name is too long.
_IN_THE_PATH = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
# Causes that only a write has.
ONLY_WRITING = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
# A disk that is full to the last block may still create an empty file.
_PROBE = b"\0" * 4096

_collected: ContextVar[list[NotStoredError] | None] = ContextVar("collected", default=None)


def not_stored(path: str | Path, error: OSError, advice: str | None = None) -> NotStoredError:
    """The error for a file that cannot be written.

    Args:
        path: the file that was to be written, not a temporary one.
        error: the reason. If a part of ``path`` is a file or too long, the message names it.
        advice: what to do; by default to free disk space or choose another folder, or to move a folder away that is
            in the place of the file.
    """
    reason = error.strerror or str(error) or type(error).__name__
    place = None if error.filename is None else os.fsdecode(str(error.filename))
    if error.errno in _IN_THE_PATH and place is not None and Path(place) in Path(path).parents:
        reason += f": {place}"
    if error.errno == errno.EISDIR and advice is None:
        advice = "move that folder away"
    return NotStoredError(str(path), reason, advice)


@contextmanager
def storing(path: str | Path, advice: str | None = None) -> Iterator[None]:
    """A context that raises :class:`NotStoredError` instead of an :class:`OSError` of writing ``path``."""
    try:
        yield
    except OSError as error:
        raise not_stored(path, error, advice) from error


def writable_folder(path: Path, advice: str = "choose another --out") -> Path:
    """Returns ``path`` if files can be written to it, or if it can be created: a small file is written and removed.

    Args:
        path: a folder; need not exist, and is not created.
        advice: what to do if it is not writable.

    Raises:
        RunError: it is a file, one of its parents is, or a name in it is too long.
        NotStoredError: the folder, or its first parent that exists, cannot be written to.
    """
    try:
        # The name of the folder itself is looked up too, since it may be too long.
        place = next(place for place in (path, *path.absolute().parents) if _exists(place))
        probe = place / f".probe.{os.getpid()}.tmp"
        try:
            probe.write_bytes(_PROBE)
        finally:
            discard(probe)
    except OSError as error:
        if error.errno in _IN_THE_PATH:
            raise RunError(f"{path}: cannot create the folder ({error.strerror}); {advice}") from None
        raise not_stored(path, error, advice) from None
    return path


def writable_file(path: Path, advice: str = "choose another --out") -> Path:
    """Returns the path of a file to be written, after its folder was checked (:func:`writable_folder`).

    Args:
        path: a file; need not exist.
        advice: what to do if it cannot be written.

    Raises:
        RunError: it is a folder, a device or a pipe, one of its parents is a file, or a name in it is too long.
        NotStoredError: its folder cannot be written to.
    """
    try:
        writable_folder(path.parent, advice)
    except NotStoredError as error:
        raise NotStoredError(str(path), error.reason, advice) from None
    try:
        exists = _exists(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be a file ({error.strerror}); {advice}") from None
    if exists and path.is_dir():
        raise RunError(f"{path}: is a folder, not a file; {advice}")
    if exists and not path.is_file():
        raise RunError(f"{path}: is a device or a pipe, not a file; {advice}")
    return path


def _exists(path: Path) -> bool:
    """Whether a path exists; unlike :meth:`Path.exists`, an invalid path is an error in every version of Python.

    Raises:
        OSError: one of its parents is a file, or a name is too long.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def temporary_folder(prefix: str = "trilemma-") -> TemporaryDirectory[str]:
    """A folder of the system's temporary files, as a context that yields its path and removes it at the end.

    Raises:
        NotStoredError: none can be created.
    """
    with storing("temporary files", "free disk space or set TMPDIR to another folder"):
        return TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


def discard(path: Path) -> None:
    """Removes a file that is not needed any more, if it exists and can be removed.

    On a read-only disk the removal of a file that does not exist is an error too.
    """
    with suppress(OSError):
        path.unlink(missing_ok=True)


@contextmanager
def collecting_unstored() -> Iterator[list[NotStoredError]]:
    """A context in which :func:`go_on_without` appends errors to the list, instead of printing warnings."""
    errors: list[NotStoredError] = []
    token = _collected.set(errors)
    try:
        yield errors
    finally:
        _collected.reset(token)


def go_on_without(error: NotStoredError) -> None:
    """Reports a result that cannot be written, but is returned: prints a warning, unless errors are collected."""
    errors = _collected.get()
    if errors is not None:
        errors.append(error)
        return
    print_message(
        f"warning: {error.path}: cannot be written ({error.reason}); the result is shown but not stored"
    )
