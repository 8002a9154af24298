"""An evaluation that is interrupted leaves with 130 and a line that says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer

from trilemma.cli.console import complain
from trilemma.cli.group import INTERRUPTED


@contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the command; states in ``folder`` (and below) are what ``--resume`` reads."""
    former = None
    if threading.current_thread() is threading.main_thread():  # signals belong to it
        former = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        saved = folder is not None and any(folder.rglob("*.state.safetensors"))
        go_on = (
            "what was found is saved; the same command with --resume goes on" if saved else "nothing is saved"
        )
        hint = "" if saved or folder is not None else "; AutoAttack could go on if --out named a folder"
        complain(f"interrupted; {go_on}{hint}", kind="")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if former is not None:
            signal.signal(signal.SIGTERM, former)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
