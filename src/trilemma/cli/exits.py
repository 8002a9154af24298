"""From an exception or a signal to one line and an exit code: 2 a mistake, 3 training failed, 130 interrupted."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from trilemma.cli.common import print_error
from trilemma.errors import TrainingFailedError, UserError

USER_ERROR = 2
TRAINING_FAILED = 3
INTERRUPTED = 130
# ClickException, of typer's own copy of click in newer versions; reached by a name that all versions have.
COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
_FULL_OR_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


class OneLineErrors(TyperGroup):
    """The command group: a user's mistake is one line on standard error, a bug keeps its traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line and leaves with its exit code."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()  # a reader that has gone is noticed here, not at interpreter exit
        except COMMAND_LINE_ERROR as error:
            code = USER_ERROR
            print_error(_usage(error))
        except SystemExit as end:  # typer's own answer to a closed pipe while it prints help
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            code = 0
        except BrokenPipeError:
            code = 0
            _let_go_of_closed_streams()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Runs the subcommand; everything it may raise on purpose becomes an exit code."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except UserError as error:
            print_error(str(error))
            raise typer.Exit(USER_ERROR) from None
        except TrainingFailedError as error:
            print_error(str(error))
            raise typer.Exit(TRAINING_FAILED) from None
        except KeyboardInterrupt:
            print_error("interrupted", prefix="")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader has seen enough: quiet, and not a failure
            _let_go_of_closed_streams()
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno not in _FULL_OR_READ_ONLY:
                raise
            where = error.filename or "standard output"
            print_error(
                f"{where}: cannot be written ({error.strerror}); choose another place or free this one"
            )
            _let_go_of_closed_streams()
            raise typer.Exit(USER_ERROR) from None


def _usage(error: Any) -> str:
    """A mistake in the command line itself, with the command that explains it."""
    context = getattr(error, "ctx", None)
    command = "trilemma" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')}; `{command} --help` explains"


def _let_go_of_closed_streams() -> None:
    """Points streams that take nothing more at the null device, so that nothing complains at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        print_error(f"interrupted; {go_on}{hint}", prefix="")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if former is not None:
            signal.signal(signal.SIGTERM, former)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
