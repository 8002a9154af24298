"""Turns exceptions and signals into one line and an exit code.

2 user error, 3 training failed, 4 a result is not stored, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from trilemma.cli.common import print_error
from trilemma.errors import NotStoredError, RunError, TrainingFailedError, UserError
from trilemma.processes import by_launcher, sigterm_interrupts
from trilemma.storing import ONLY_WRITING, collecting_unstored, not_stored

USER_ERROR = 2
TRAINING_FAILED = 3
NOT_STORED = 4
INTERRUPTED = 130
# Seconds for which a further process of a launcher waits with an error, which the first may have too and then reports.
_DELAY = 5.0
# ClickException. Newer versions of typer contain a copy of click, so the class is looked up through typer itself.
COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
# Causes that lie in the user's files, besides those that only a write has.
_NOT_USABLE = (
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


class _Tolerant:
    """Standard error that drops what does not fit on a full disk, where a log may be, instead of ending the command.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in ONLY_WRITING:
                raise


class OneLineErrors(TyperGroup):
    """Command group that prints a user's mistake as one line on standard error; a bug keeps its traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line and exits with its exit code."""
        stderr = sys.stderr
        sys.stderr = _Tolerant(stderr)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            # A closed pipe must raise here, not at interpreter exit.
            sys.stdout.flush()
        except COMMAND_LINE_ERROR as error:
            code = USER_ERROR
            print_error(_usage(error))
        except SystemExit as end:
            # Typer exits with 1 if the pipe is closed while it prints help.
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            code = 0
        except BrokenPipeError:
            code = 0
        finally:
            sys.stderr = stderr
            _redirect_closed_streams()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Runs the subcommand; turns expected exceptions into exit codes."""
        with collecting_unstored() as errors:
            value = self._invoke(ctx)
        if errors:
            print_error(_results_not_stored(errors))
            raise typer.Exit(NOT_STORED)
        return value

    def _invoke(self, ctx: Any) -> Any:
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except NotStoredError as error:
            _let_the_first_report()
            print_error(str(error))
            raise typer.Exit(NOT_STORED) from None
        except UserError as error:
            _let_the_first_report()
            print_error(str(error))
            raise typer.Exit(USER_ERROR) from None
        except TrainingFailedError as error:
            print_error(str(error))
            raise typer.Exit(TRAINING_FAILED) from None
        except KeyboardInterrupt:
            print_error("interrupted", prefix="")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader closed the pipe, such as `head`; that is no failure.
            _redirect_closed_streams()
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno in ONLY_WRITING:
                print_error(str(not_stored(error.filename or "standard output", error)))
                _redirect_closed_streams()
                raise typer.Exit(NOT_STORED) from None
            if error.errno not in _NOT_USABLE or error.filename is None:
                raise
            print_error(
                f"{error.filename}: cannot be read or written ({error.strerror}); choose another path"
            )
            raise typer.Exit(USER_ERROR) from None


def _let_the_first_report() -> None:
    """Waits in a further process of a launcher, which ends it meanwhile if the first has had the same error."""
    if by_launcher() and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(_DELAY)


def _results_not_stored(errors: Sequence[NotStoredError]) -> str:
    """Returns the message for results that were printed, but could not be written."""
    first, more = errors[0], f" (nor {len(errors) - 1} more)" if len(errors) > 1 else ""
    return (
        f"{first.path}{more}: cannot be written ({first.reason}); the result is shown but not stored; "
        f"{first.advice}"
    )


def _usage(error: Any) -> str:
    """Returns the message of a mistake in the command line, with the command that shows its help."""
    context = getattr(error, "ctx", None)
    command = "trilemma" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')}; see `{command} --help`"


def _redirect_closed_streams() -> None:
    """Redirects closed output streams to the null device, so that the interpreter prints no error at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def only_copies() -> Iterator[None]:
    """Context of a command that only copies what is stored elsewhere: a file it cannot write is a user error.

    Nothing computed is lost, so the exit code is 2, not 4.
    """
    try:
        yield
    except NotStoredError as error:
        raise RunError(str(error)) from None


@contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM end the command with exit code 130 and a hint about ``--resume``.

    Args:
        folder: folder whose state files, at any depth, ``--resume`` reads; ``None`` if no state is saved.
    """
    with sigterm_interrupts():
        try:
            yield
        except KeyboardInterrupt:
            saved = folder is not None and any(folder.rglob("*.state.safetensors"))
            outcome = (
                "results so far are saved; repeat the command with --resume" if saved else "nothing is saved"
            )
            hint = "" if saved or folder is not None else "; with --out DIR, AutoAttack can be resumed"
            print_error(f"interrupted; {outcome}{hint}", prefix="")
            raise typer.Exit(INTERRUPTED) from None
