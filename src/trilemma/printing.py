"""The one place that prints. What comes from files, names and other people's code is text, never a terminal command.

A terminal obeys control characters: an escape sequence in a file name can clear the screen, write to the clipboard, or
imitate a line of this program. Everything printed passes :func:`visible`, on terminals and in pipes alike, since a log
is read on a terminal later. The only exceptions are the colours and movements of rich's own progress bar and tables.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from typing import Any, TextIO

# C0 and C1 controls; marks and overrides of the writing direction; line and paragraph separators; surrogates, which
# stand for bytes that are no UTF-8 and which no stream can write.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Longest message in characters: the beginning says what is wrong and where, the end what to do.
LONGEST_MESSAGE = 1500


def visible(text: str) -> str:
    """The text with an escape such as ``\\x1b`` in place of every control character except line feeds and tabs."""
    return CONTROLS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def visible_line(text: str) -> str:
    """:func:`visible` as one line: line breaks and tabs become spaces."""
    return visible(" ".join(text.splitlines()).replace("\t", " "))


def shortened(text: str, longest: int = 80) -> str:
    """The text, with dots instead of its middle if it is longer than ``longest``, to be quoted in a message."""
    end = longest // 3
    return text if len(text) <= longest else f"{text[: longest - end]} ... {text[-end:]}"


def quoted(value: object) -> str:
    """A refused value as a message quotes it: its ``repr``, :func:`shortened`."""
    try:
        return shortened(repr(value))
    # Python writes no integer of more than 4300 digits.
    except ValueError:
        return "a number of thousands of digits"


def short_line(text: str) -> str:
    """:func:`visible_line` of a message, which is :func:`shortened` to :data:`LONGEST_MESSAGE`."""
    return visible_line(shortened(text, LONGEST_MESSAGE))


def print_lines(*lines: object) -> None:
    """Prints values on standard output, each in one line."""
    _write(sys.stdout, "\n".join(visible_line(str(line)) for line in lines))


def print_block(text: str) -> None:
    """Prints text of several lines, such as JSON, on standard output; its line feeds must not come from names."""
    _write(sys.stdout, visible(text.removesuffix("\n")))


def print_drawn(text: str) -> None:
    """Prints a drawing of rich on standard output; the caller has made every text in it :func:`visible_line`."""
    _write(sys.stdout, text)


def print_message(text: str) -> None:
    """Prints one line on standard error, as long as it is sensible, at once."""
    _write(sys.stderr, short_line(text))


def _write(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # A stream of another encoding, such as ASCII in a bare container, shows the code of what it lacks.
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def print_traceback(error: BaseException) -> None:
    """Prints the traceback of a bug on standard error, as Python does; the messages in it may be other people's."""
    _write(sys.stderr, visible("".join(traceback.format_exception(error)).rstrip("\n")))


def print_warnings_visibly() -> None:
    """Makes warnings of Python, which quote names and values, pass :func:`visible` too."""

    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        _write(sys.stderr if file is None else file, visible(text.rstrip("\n")))

    warnings.showwarning = show
