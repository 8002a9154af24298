"""Rows that print themselves: still dictionaries and lists, escaped in HTML, complete in Markdown and data frames."""

from __future__ import annotations

import builtins
import csv
import io
import json
import pickle

import pytest

from trilemma.errors import MissingExtraError
from trilemma.tables import SHOWN_ROWS, Records, Rows, csv_cell, csv_table

ROW = {
    "protocol": "pgd-20", "quantity": "accuracy", "value": 0.5, "lower": 0.4, "upper": 0.6, "count": 100,
    "data": {"name": "<b>digits</b>", "split": "test"}, "threat": {"norm": "linf", "radius": "8/255"},
}  # fmt: skip


def test_rows_are_a_dictionary():
    plain = {"pgd-20": ROW}
    rows = Rows(plain)
    assert rows == plain and rows["pgd-20"]["value"] == 0.5
    assert json.loads(json.dumps(rows)) == plain
    assert pickle.loads(pickle.dumps(rows)) == plain


def test_the_text_of_rows_states_result_and_conditions():
    head, line = repr(
        Rows({"pgd-20": ROW, "ece": {**ROW, "quantity": "ECE", "value": 0.123456}})
    ).splitlines()[:2]
    assert head.split()[:3] == ["protocol", "quantity", "value"]
    assert "50.0 %" in line and "40.0 % to 60.0 %" in line and "linf 8/255" in line
    assert "0.1235" in repr(Rows({"ece": {**ROW, "quantity": "ECE", "value": 0.123456}}))


def test_html_is_escaped():
    html = Rows({"<script>": ROW})._repr_html_() + Records([{"<i>": "<b>&"}])._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "<i>" not in html
    assert "&lt;b&gt;digits&lt;/b&gt; test" in html and "&lt;b&gt;&amp;" in html


def test_a_screen_shows_the_first_rows_and_counts_the_rest():
    records = Records({"image": k, "class": "cat"} for k in range(1000))
    assert len(repr(records).splitlines()) == SHOWN_ROWS + 2
    assert repr(records).endswith(f"... {1000 - SHOWN_ROWS} more rows")
    assert records._repr_html_().count("<tr>") == SHOWN_ROWS + 1
    assert records.to_markdown().count("\n") == 1002


def test_markdown_escapes_bars_and_keeps_one_line_per_row():
    assert Records([{"a|b": "x\ny|"}]).to_markdown() == "| a\\|b |\n| --- |\n| x y\\| |\n"


def test_nothing_prints_as_no_rows():
    assert repr(Rows()) == repr(Records()) == "no rows"
    assert Rows()._repr_html_() == Records().to_markdown() == ""


def test_without_pandas_one_line_says_what_to_do(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for rows in (Rows({"a": ROW}), Records([ROW])):
        with pytest.raises(MissingExtraError, match="pip install pandas"):
            rows.to_pandas()


def test_a_data_frame_has_all_values():
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = Rows({"pgd-20": ROW, "pgd-20@last": {**ROW, "value": 0.25}}).to_pandas()
    assert list(frame.index) == ["pgd-20", "pgd-20@last"]
    assert frame.loc["pgd-20@last", "value"] == 0.25
    assert frame.loc["pgd-20", "threat.radius"] == "8/255"
    assert list(Records([{"image": 0, "class": "cat"}]).to_pandas().columns) == ["image", "class"]


def test_markdown_cells_hold_no_markup_and_no_html():
    text = Records(
        [{"<b>k": "<script>alert(1)</script> [a](javascript:b) `c` *d* $e$ ~f~ \x1b[2J\nx|y & z_w _v_"}]
    )
    table = text.to_markdown()
    assert "<" not in table and "\x1b" not in table and table.count("\n") == 3
    assert (
        "&lt;script&gt;" in table and "\\[a\\](javascript:b)" in table and "x\\|y &amp; z_w \\_v\\_" in table
    )


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+cmd|' /C calc'!A0", "-1+2", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1"]
)
def test_no_text_of_a_csv_file_is_a_formula(text):
    cell = csv_cell(text)
    assert isinstance(cell, str) and cell.startswith("'") and cell.endswith(text.strip())
    assert csv.reader(io.StringIO(csv_table([{text: text}]))).__next__() == [cell]


def test_numbers_and_names_of_a_csv_file_are_unchanged():
    for value in (-1.5, 3, None, "-1.5", "+2", "-1e-05", "-.5", "pgd-20", "8/255", "a=b"):
        assert csv_cell(value) == value
    assert csv_cell("a\nb\x1b") == "a b\\x1b"
    assert csv_table([{"a": -1.5, "b": None}]) == "a,b\n-1.5,\n"
