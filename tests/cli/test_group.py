"""Exceptions become exit codes and one line; a bug keeps its traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from trilemma.cli.exits import OneLineErrors
from trilemma.errors import ConfigError, TrainingFailedError

RUN = [sys.executable, "-c", "from trilemma.cli.main import main; main()"]


def leave(raise_: Callable[[], None]) -> Result:
    """The outcome of a command that does ``raise_()``."""
    app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
    app.command("one")(raise_)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["one"])


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("a.b: no"), 2), (TrainingFailedError("a.b: no"), 3)],
)
def test_an_expected_error_is_its_message_and_its_code(error, code):
    result = leave(raising(error))
    assert (result.exit_code, result.stderr, result.stdout) == (code, "trilemma: error: a.b: no\n", "")


def test_a_message_of_several_lines_becomes_one():
    assert leave(raising(ConfigError("first\nsecond"))).stderr == "trilemma: error: first second\n"


def test_ctrl_c_leaves_with_130():
    result = leave(raising(KeyboardInterrupt()))
    assert (result.exit_code, result.stderr) == (130, "trilemma: interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 4, "cannot be written ("),
        (errno.EROFS, 4, "cannot be written ("),
        (errno.EACCES, 2, "cannot be read or written ("),
        (errno.ENOTDIR, 2, "cannot be read or written ("),
    ],
)
def test_a_full_or_read_only_disk_is_one_line_that_names_the_file(number, code, words):
    result = leave(raising(OSError(number, os.strerror(number), "runs/x/a.png")))
    assert result.exit_code == code
    assert result.stderr.startswith(f"trilemma: error: runs/x/a.png: {words}")


def test_a_bug_is_not_dressed_up():
    result = leave(raising(ZeroDivisionError("oh")))
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def environment() -> dict[str, str]:
    source = str(Path(__file__).parents[2] / "src")
    return {**os.environ, "PYTHONPATH": source, "COLUMNS": "80"}


def test_a_bug_shows_its_traceback_and_leaves_with_1():
    code = "import trilemma.cli.list as m; m.entries = lambda kind: 1 / 0; " + RUN[2]
    done = subprocess.run(
        [sys.executable, "-c", code, "list"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["list", "--json"]])
def test_a_reader_that_leaves_early_is_met_with_silence(arguments):
    process = subprocess.Popen(
        [*RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    complaints = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert complaints == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RUN, "list"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 4
    assert done.stderr.startswith("trilemma: error: standard output: cannot be written")
    assert len(done.stderr.splitlines()) == 1
