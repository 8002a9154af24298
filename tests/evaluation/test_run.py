"""Evaluating a run folder: rows on disk equal rows returned, and no result is ever lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trilemma import evaluate, load
from trilemma.errors import CheckpointError
from trilemma.evaluation.evaluate import evaluate_run
from trilemma.runs.read import read_contents
from trilemma.runs.records import read_record
from trilemma.runs.run_directory import RunDirectory


def test_rows_are_written_as_returned(run_copy):
    rows = evaluate_run(run_copy, images=20)
    for name, row in rows.items():
        assert read_record(run_copy / "evaluation" / f"{name}.json") == row
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
    assert read_record(run_copy / "evaluation" / "clean.json")["count"] == 30
    assert read_record(run_copy / "evaluation" / "earlier" / "clean-1.json")["count"] == 20


def test_other_images_do_not_replace_the_runs_own(run_copy):
    own = evaluate_run(run_copy, ["clean"], images=20)["clean"]
    other = (torch.rand(20, 1, 8, 8), torch.arange(20) % 10)
    row = evaluate_run(run_copy, ["clean"], other)["clean"]
    contents = read_contents(run_copy)
    assert contents.rows == {"clean": own} and contents.others == [row]


def test_a_folder_that_cannot_be_written_is_a_warning(run_copy, monkeypatch, capsys):
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    assert evaluate_run(run_copy, ["clean"], images=20)["clean"]["count"] == 20
    printed = capsys.readouterr()
    assert "cannot be written (Permission denied)" in printed.err
    assert printed.out == ""


@pytest.fixture
def two(run_copy) -> Path:
    """A run with a best and a last classifier, which are not the same one."""
    run = RunDirectory(run_copy)
    last = load(run.best_classifier)
    with torch.no_grad():
        next(last.parameters()).mul_(-1)
    last.about = {**last.about, "checkpoint": "last", "epoch": 9.0, "step": 90}
    last.save(run.last_classifier)
    return Path(run_copy)


def test_both_checkpoints_are_evaluated_and_every_row_says_which_it_is_of(two):
    rows = evaluate_run(two, ["clean"], images=20, checkpoint="both")
    assert list(rows) == ["clean", "clean@last"]
    assert [row["checkpoint"]["checkpoint"] for row in rows.values()] == ["best", "last"]
    for name, row in zip(("clean", "last/clean"), rows.values(), strict=True):
        assert read_record(two / "evaluation" / f"{name}.json") == row
    alone = evaluate(load(RunDirectory(two).last_classifier), "digits", ["clean"], images=20)
    assert rows["clean@last"]["value"] == alone["clean"]["value"]


def test_better_test_accuracy_of_the_last_changes_nothing(two):
    """Whichever of the two is better on test images: rows are of the best on held-out images."""
    values = []
    for swapped in (False, True):
        run = RunDirectory(two)
        if swapped:
            first, second = (load(path) for path in run.classifiers().values())
            first.about, second.about = second.about, first.about
            first.save(run.last_classifier)
            second.save(run.best_classifier)
        rows = evaluate_run(two, ["clean"], images=20, checkpoint="both")
        assert rows["clean"]["checkpoint"]["checkpoint"] == "best"
        values.append((rows["clean"]["value"], rows["clean@last"]["value"]))
    assert values[0] == values[1][::-1] and values[0][0] != values[0][1]


def test_one_checkpoint_alone(two):
    assert evaluate_run(two, ["clean"], images=20)["clean"]["checkpoint"]["checkpoint"] == "best"
    assert not (two / "evaluation" / "last").exists()
    rows = evaluate_run(two, ["clean"], images=20, checkpoint="last")
    assert rows["clean"]["checkpoint"]["checkpoint"] == "last"
    assert (two / "evaluation" / "last" / "clean.json").is_file()


def test_a_last_that_is_the_best_is_measured_once_and_shown_twice(two, monkeypatch):
    run = RunDirectory(two)
    best = load(run.best_classifier)
    best.about = {**best.about, "checkpoint": "last"}
    best.save(run.last_classifier)
    calls: list[Any] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return evaluate(*arguments, **options)

    monkeypatch.setattr("trilemma.evaluation.evaluate.evaluate", counted)
    rows = evaluate_run(two, ["clean"], images=20, checkpoint="both")
    assert len(calls) == 1
    assert rows["clean"]["value"] == rows["clean@last"]["value"]
    assert rows["clean@last"]["checkpoint"]["checkpoint"] == "last"


def test_a_run_without_a_best_is_evaluated_by_its_last_and_says_so(two):
    RunDirectory(two).best_classifier.unlink()
    # Of a run that has selected one, the lost file would be an error.
    RunDirectory(two).write_metrics(())
    rows = evaluate_run(two, ["clean"], images=20, checkpoint="both")
    assert list(rows) == ["clean"] and rows["clean"]["checkpoint"]["checkpoint"] == "last"
    assert (two / "evaluation" / "clean.json").is_file()
    RunDirectory(two).last_classifier.unlink()
    with pytest.raises(CheckpointError, match="no finished classifier yet"):
        evaluate_run(two, ["clean"], checkpoint="both")


def test_a_last_that_is_not_there_is_named(run_copy):
    with pytest.raises(CheckpointError, match="has no last classifier, only best"):
        evaluate_run(run_copy, ["clean"], checkpoint="last")
