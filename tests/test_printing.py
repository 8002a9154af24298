"""What is printed: control characters of names and messages never reach a stream, and nothing prints past the door."""

from __future__ import annotations

import ast
import io
import sys
import warnings
from pathlib import Path

import pytest

from trilemma import printing
from trilemma.errors import DataError, describe
from trilemma.printing import (
    CONTROLS,
    LONGEST_MESSAGE,
    print_block,
    print_lines,
    print_message,
    print_traceback,
    print_warnings_visibly,
    shortened,
    visible,
    visible_line,
)
from trilemma.progress import ProgressBar

SOURCE = Path(printing.__file__).parent
# Clears the screen, writes the clipboard, sets a link and the title; 8-bit controls; a carriage return; direction.
HOSTILE = (
    "\x1b[2J", "\x1b]52;c;cm0=\x07", "\x1b]8;;http://x\x1b\\", "\x1b]0;t\x07", "\x9b31m", "\x90q\x9c", "a\rb", "a\nb",
    "\u202egnp.exe", "\u2066x\u2069", "\u200ex", "\u2028x", "\x7f\x08", "\x00", "\udcff\ud800", "\x85",
)  # fmt: skip


def control_free(text: str) -> bool:
    return not CONTROLS.search(text.replace("\n", "").replace("\t", ""))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_one_line_that_shows_what_is_in_it(text, capsys):
    print_lines(text)
    print_message(f"warning: {text}")
    print_block(f"head\n{text.replace(chr(10), '')}")
    out, err = capsys.readouterr()
    assert control_free(out) and control_free(err)
    assert out.count("\n") == 3 and err.count("\n") == 1
    assert control_free(str(DataError(text))) and "\n" not in str(DataError(text))
    assert control_free(visible(repr(DataError(text))))


def test_letters_of_all_scripts_are_unchanged():
    for text in (
        "café ∞ ε=8/255 ± 🐈",
        "\N{ARABIC LETTER BEH}\N{ZERO WIDTH NON-JOINER}",
        "a  b",
        "猫 | \\x1b",
    ):
        assert visible_line(text) == str(DataError(text)) == text
    assert visible_line("\x1b[1m\u202e\udcff") == "\\x1b[1m\\u202e\\udcff"


def test_a_long_message_keeps_its_beginning_and_its_end():
    text = str(DataError(f"file.yaml: {'9' * 100_000}; write less"))
    assert len(text) < LONGEST_MESSAGE + 10
    assert text.startswith("file.yaml: 999") and text.endswith("99; write less")
    assert shortened("abc") == "abc" and len(shortened("x" * 100, 80)) == 85


def test_the_exception_of_other_peoples_code_is_described_in_visible_characters(capsys):
    try:
        raise ValueError("\x1b]0;owned\x07 bad \u202e value")
    except ValueError as error:
        print_message(describe(error))
        print_traceback(error)
    err = capsys.readouterr().err
    assert control_free(err) and "\\x1b]0;owned\\x07" in err and "Traceback (most recent" in err


def test_warnings_of_python_are_visible(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    print_warnings_visibly()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings restores showwarning, but does not reset it here.
        warnings.warn("name \x1b[2J", stacklevel=1)
    err = capsys.readouterr().err
    assert "\\x1b[2J" in err and control_free(err)


def test_a_stream_of_another_encoding_shows_the_code(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_lines("± café")
    assert raw.getvalue() == b"\\xb1 caf\\xe9\n"


def test_the_progress_bar_shows_names_as_text(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar("\x1b]0;t\x07[bold]title[/nothing]", 2, transient=False) as bar:
        bar.update(done=1, text="\x9b2J\u202e")
        bar.message("[/red] \x1b[2J [bold]x[/bold]\n2")
    text = stream.getvalue()
    assert "[/red] \\x1b[2J [bold]x[/bold] 2" in text.replace("\n2", " 2")
    assert "\x1b]" not in text and "\x9b" not in text and "\u202e" not in text


def _prints(node: ast.Call) -> bool:
    """Whether a call prints by itself: print(...), sys.stdout.write(...), typer.echo(...), warnings.warn(...)."""
    return ast.unparse(node.func) in {
        "print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.writelines", "sys.stderr.writelines",
        "typer.echo", "typer.secho", "click.echo", "warnings.warn", "traceback.print_exc",
    }  # fmt: skip


def test_only_the_door_prints():
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name != "printing.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _prints(node)
    ]
    assert found == [], "print with trilemma.printing, which shows control characters of names as text"
