"""Tables and JSON on standard output."""

from __future__ import annotations

import json
import math
import os
import re

import pytest

from trilemma.cli.common import fitting_columns, percent, print_json, print_table


def test_json_has_no_number_that_is_not_finite(capsys):
    print_json({"a": [math.nan, 1.5], "b": {"c": -math.inf}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}}


def test_a_table_in_a_pipe_folds_and_cuts_nothing(capsys):
    long = "x" * 300
    print_table([{"name": long, "value": 0.123456}, {"name": "[red]", "value": None}])
    lines = capsys.readouterr().out.splitlines()
    assert sum(long in line for line in lines) == 1
    assert any(line.split() == ["[red]", "-"] for line in lines)
    assert any(line.split() == [long, "0.1235"] for line in lines)


def test_no_rows_print_nothing(capsys):
    print_table([])
    assert capsys.readouterr().out == ""


def test_percent():
    assert (percent(0.975), percent(None)) == ("97.5%", None)


ROW = {
    "protocol": "autoattack-standard", "accuracy": "52.0%", "95 % interval": "47.1% to 56.9%", "threat": "linf 8/255",
    "checkpoint": "best, epoch 40", "images": 397, "data": "digits test", "seconds": 12.5,
}  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_on_a_terminal_drops_its_last_columns_and_breaks_no_word(capsys, monkeypatch, columns):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    print_table([ROW, {**ROW, "protocol": "clean"}])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    table = plain.partition("not shown")[0].splitlines()
    assert all(len(line) <= columns for line in table)
    assert len(table) == 4  # heading, rule, and one line per row
    shown = [key for key in ROW if re.search(rf"\b{re.escape(key)}\b", table[0])]
    assert shown == list(ROW)[: len(shown)]
    assert all(str(ROW[key]) in table[2] for key in shown)
    omitted = ", ".join(list(ROW)[len(shown) :])
    assert omitted == "" or f"not shown: {omitted}; widen the terminal" in plain.replace("\n", " ")
    assert len(shown) == {60: 3, 80: 5, 120: 8}[columns]


def test_sentences_are_wrapped_at_spaces_and_names_are_one_line():
    cells = [{"name": "x", "summary": "word " * 30, "module": "m" * 20}]
    assert fitting_columns(cells, 60) == (["name", "summary"], ["module"])
    assert fitting_columns(cells, 70) == (["name", "summary", "module"], [])
    assert fitting_columns([{"name": "n" * 100, "value": "1"}], 80) == (["name"], ["value"])


def test_line_breaks_in_a_cell_do_not_break_its_row(capsys):
    print_table([{"name": "two\nlines", "value": 1}])
    assert "two lines" in capsys.readouterr().out
