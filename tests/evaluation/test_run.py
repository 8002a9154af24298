"""Evaluating a run folder: rows on disk equal rows returned, and no result is ever lost."""

from __future__ import annotations

import json
from pathlib import Path

from ebat.evaluation.run import evaluate_run


def test_rows_are_written_as_returned(run_copy):
    rows = evaluate_run(run_copy, images=20)
    for name, row in rows.items():
        assert json.loads((run_copy / "evaluation" / f"{name}.json").read_text()) == row
    assert rows["pgd-20"]["checkpoint"]["checkpoint"] == "best"
    assert rows["clean"]["data"] == {
        "name": "digits",
        "split": "test",
        "images": "first 20 of 397, stratified order",
    }


def test_a_row_of_other_settings_moves_aside_instead_of_being_lost(run_copy):
    evaluate_run(run_copy, ["clean"], images=20)
    evaluate_run(run_copy, ["clean"], images=20)
    assert not (run_copy / "evaluation" / "earlier").exists()
    evaluate_run(run_copy, ["clean"], images=30)
    assert json.loads((run_copy / "evaluation" / "clean.json").read_text())["count"] == 30
    assert json.loads((run_copy / "evaluation" / "earlier" / "clean-1.json").read_text())["count"] == 20


def test_a_folder_that_cannot_be_written_is_a_warning(run_copy, monkeypatch, capsys):
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ebat.evaluation.records.write_atomically", refuse)
    assert evaluate_run(run_copy, ["clean"], images=20)["clean"]["count"] == 20
    printed = capsys.readouterr()
    assert "cannot be written (Permission denied)" in printed.err
    assert printed.out == ""
