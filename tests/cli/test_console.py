"""Tables and JSON on standard output."""

from __future__ import annotations

import json
import math

from trilemma.cli.common import percent, print_json, print_table


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
