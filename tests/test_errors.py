"""Exceptions of other code in one line: type, main line of the message, and the user's own file and line."""

from __future__ import annotations

import json

import pytest

from trilemma.errors import describe

TORCHSCRIPT = (
    "The following operation failed in the TorchScript interpreter.\nTraceback:\n  here\nRuntimeError: sizes"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(""), "RuntimeError"),
        (ValueError("\n  first \nsecond"), "ValueError: first"),
        (
            ValueError("backend raised:\nNoCompiler: none found\nmore"),
            "ValueError: backend raised: NoCompiler: none found",
        ),
        (RuntimeError(TORCHSCRIPT), "RuntimeError: RuntimeError: sizes"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 300),
    ],
)
def test_the_line_that_says_most(error: Exception, line: str) -> None:
    assert describe(error) == line


def test_the_place_is_the_users_line_not_that_of_a_library() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    line = describe(caught.value)
    assert line.startswith("JSONDecodeError: Expecting property name")
    assert line.endswith(f"({__file__}, line {caught.tb.tb_lineno})")
