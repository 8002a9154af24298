"""``--out``: a folder to write into."""

from __future__ import annotations

import os
from pathlib import Path

from trilemma.errors import RunError
from trilemma.training.run_directory import RunDirectory


def out_folder(out: Path | None, run: RunDirectory | None, name: str) -> Path:
    """``--out``, or by default the folder ``name`` of the run; without a run, of the working directory. It is made."""
    return writable_folder(out or (Path(name) if run is None else run.path / name))


def writable_folder(path: Path) -> Path:
    """``path``, made if it is not there.

    Raises:
        RunError: it is a file, or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be made a folder ({error.strerror}); choose another --out") from None
    if not os.access(path, os.W_OK):
        raise RunError(f"{path}: is not writable; choose another --out")
    return path
