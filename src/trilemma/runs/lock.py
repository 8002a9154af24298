"""The lock of a run folder: one process writes at a time; the operating system releases it when that process ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trilemma.errors import RunError
from trilemma.files import TEMPORARY
from trilemma.printing import print_message
from trilemma.runs.run_directory import LOCK_FILE, RunDirectory

# A folder that cannot be written needs no lock: nothing in it changes.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
# How many folders above an output folder a run is looked for: ``RUN/samples/NAME``.
_DEPTH = 2


@contextmanager
def writing(folder: Path, patience: float = 0) -> Iterator[None]:
    """Context in which this thread alone writes to a folder of results; may be nested. Readers are not blocked.

    Temporary files that a killed process left in the folder are removed.

    The lock is an advisory one of the operating system on the empty file ``.lock``, which stays in the folder. On a
    network file system it is as good as the locks of that file system; where it has none, a warning is printed.

    Args:
        folder: a run folder or a folder of result rows; created if it does not exist.
        patience: seconds to wait for another process that is writing there.

    Raises:
        RunError: another process or thread is still writing there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE, timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        raise RunError(
            f"{folder}: another process is writing to this folder; wait until it has ended, or stop it (to use the "
            "classifier meanwhile, give its file instead of the folder)"
        ) from None
    except OSError as error:
        # Whatever cannot be written is reported where it is written.
        if error.errno not in _READ_ONLY:
            reason = error.strerror or error
            print_message(f"warning: {folder}: cannot be locked ({reason}); write with one process only")
        yield
        return
    try:
        if lock.lock_counter == 1:
            _remove_unfinished(folder)
        yield
    finally:
        lock.release()


def _remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of killed processes; those of commands that need no lock are in use."""
    for path in folder.rglob(TEMPORARY):
        process = path.suffixes[-2:-1]
        if os.name == "posix" and process and not _is_running(process[0].removeprefix(".")):
            with suppress(OSError):
                path.unlink()


def _is_running(process: str) -> bool:
    """Returns whether a process with this number may be running on this machine."""
    try:
        # Signal 0 is none: only its permission is checked.
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    return True


@contextmanager
def writing_inside(folder: str | Path | None) -> Iterator[None]:
    """As :func:`writing`, for the run folder that an output folder is or lies in; no lock elsewhere or for ``None``."""
    path = None if folder is None else Path(folder).absolute()
    candidates = [] if path is None else [path, *path.parents[:_DEPTH]]
    run = next((place for place in candidates if RunDirectory(place).exists()), None)
    if run is None:
        yield
        return
    with writing(run):
        yield
