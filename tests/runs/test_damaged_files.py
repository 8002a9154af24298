"""Damaged text files of a run: what is whole is read, the rest is named in one line; no reader fails or waits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trilemma.classifier.source import ClassifierSource
from trilemma.errors import ConfigError, RunError
from trilemma.monitors.log import read_log
from trilemma.runs.read import read_all, read_contents
from trilemma.runs.records import read_config, stored_threat, write_json, write_row
from trilemma.runs.run_directory import RunDirectory
from trilemma.runs.schemas import SampleRecord, check
from trilemma.text_files import unsealed_text

Err = pytest.CaptureFixture[str]


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WHOLE: list[Callable[[Path], Any]] = [
    folder,
    link,
    pipe,
    lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    lambda path: path.write_bytes(bytes(100)),
    lambda path: path.write_bytes(b"[1, 2]\n"),
    lambda path: path.write_bytes(b"\xe9\n"),
]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and links")


def flip(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("damage", WHOLE)
def test_files_that_are_no_text_are_named_once_and_the_rest_of_the_run_is_read(
    run_copy: Path, capsys: Err, damage: Callable[[Path], Any]
) -> None:
    run = RunDirectory(run_copy)
    files = [run.status_file, run.environment_file, run.metrics_file, run.events_file]
    for file in files:
        damage(file)
    contents = read_contents(run_copy)
    assert (contents.status, contents.environment, contents.metrics, contents.events) == ({}, {}, [], [])
    assert contents.method == "pgd-at" and run.summary()["status"] is None
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == sorted(map(str, files))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("status.json", '"minutes": 0.4', '"minutes": 0.7'),
        ("environment.json", '"python"', '"pyth0n"'),
        ("metrics.jsonl", '"held_out_clean": 0.6', '"held_out_clean": 0.7'),
        ("events.jsonl", "not</b> finite", "now</b> finite"),
    ],
)
def test_a_flipped_character_is_found(run_copy: Path, capsys: Err, name: str, old: str, new: str) -> None:
    whole = read_contents(run_copy)
    flip(run_copy / name, old, new)
    contents = read_contents(run_copy)
    counts = [
        len(part) for part in (contents.status, contents.environment, contents.metrics, contents.events)
    ]
    expected = [len(part) for part in (whole.status, whole.environment, whole.metrics, whole.events)]
    index = ["status.json", "environment.json", "metrics.jsonl", "events.jsonl"].index(name)
    # One line of a log, all of the other files.
    expected[index] = 0 if index < 2 else expected[index] - 1
    assert counts == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run_copy / name}: ") and "does not match the digest" in line


def test_records_without_digests_are_read(run_copy: Path, capsys: Err) -> None:
    whole, run = read_contents(run_copy), RunDirectory(run_copy)
    for file in (run.status_file, run.environment_file):
        content = json.loads(file.read_text())
        del content["digest"]
        file.write_text(json.dumps(content))
    for file in (run.metrics_file, run.events_file):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text(
            "".join(json.dumps({k: v for k, v in line.items() if k != "digest"}) + "\n" for line in lines)
        )
    run.config_file.write_text(unsealed_text(run.config_file.read_text()))
    contents = read_contents(run_copy)
    for part in ("status", "environment", "metrics", "events", "config_text"):
        assert getattr(contents, part) == getattr(whole, part)
    assert capsys.readouterr().err == ""


def test_lost_lines_of_a_log_are_said(run_copy: Path, capsys: Err) -> None:
    run = RunDirectory(run_copy)
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    lost = f"warning: {run.metrics_file}: has {{}} of the 8 lines that status.json records; the others are lost\n"
    run.metrics_file.write_text("".join(lines[:4]))
    assert len(run.metrics()) == 4 and capsys.readouterr().err == lost.format(4)
    run.metrics_file.write_text("".join(lines[:3] + lines[4:]))
    # Of a long run most lines are passed over, and counted.
    assert len(run.metrics(2)) < 7 and capsys.readouterr().err == lost.format(7)
    run.metrics_file.write_text("".join(lines)[:-5])
    assert len(run.metrics()) == len(lines) - 1
    assert capsys.readouterr().err == f"warning: {run.metrics_file}: its last line is incomplete; left out\n"
    run.events_file.write_text("")
    assert run.events() == []
    assert f"{run.events_file}: has 0 of the 2 lines" in capsys.readouterr().err
    for file, number in ((run.metrics_file, 8), (run.events_file, 2)):
        file.unlink()
        read_contents(run_copy)
        assert capsys.readouterr().err == f"warning: {file}: is missing; lost lines: {number}\n"


def test_lost_lines_of_a_log_of_an_earlier_version_are_said(run_copy: Path, capsys: Err) -> None:
    run = RunDirectory(run_copy)
    status = {key: value for key, value in run.status().items() if key not in ("lines", "selected")}
    run.status_file.write_text(json.dumps(status))
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join(lines[:4]))
    assert len(run.metrics()) == 4
    assert capsys.readouterr().err == (
        f"warning: {run.metrics_file}: ends at step 20 of 40; its other lines are lost\n"
    )
    run.events_file.write_text("")
    assert run.events() == []
    assert capsys.readouterr().err == f"warning: {run.events_file}: is empty; its lines are lost\n"


@pytest.mark.parametrize("status", ["running", "finished"])
def test_a_log_that_grows_while_it_is_read_has_lost_nothing(
    run_copy: Path, capsys: Err, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    run, read = RunDirectory(run_copy), RunDirectory._read_lines

    def reading(*arguments: Any) -> Any:
        lines = read(*arguments)
        # The process that trains writes lines and their number right after they were read here.
        run.add_metrics({"kind": "step", "step": 50, "epoch": 5.0})
        run.add_event({"kind": "restart"})
        run.write_status(status=status, step=50)
        return lines

    monkeypatch.setattr(RunDirectory, "_read_lines", reading)
    assert len(run.metrics()) == 8 and len(run.events()) == 3
    assert capsys.readouterr().err == ""


def test_a_log_that_is_cut_is_said_where_it_is_judged(run_copy: Path, capsys: Err) -> None:
    file = run_copy / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    assert len(read_log(run_copy)) == 2
    assert f"{file}: has 4 of the 8 lines" in capsys.readouterr().err


@pytest.mark.parametrize("copies", ["each line", "the file"])
def test_lines_that_are_written_twice_are_left_out_and_said(run_copy: Path, capsys: Err, copies: str) -> None:
    run, whole = RunDirectory(run_copy), read_contents(run_copy)
    for file in (run.metrics_file, run.events_file):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(2 * line for line in lines) if copies == "each line" else 2 * "".join(lines))
    assert run.metrics() == whole.metrics
    run.events()
    first = (
        "line 2 is of step 10, after one of step 10"
        if copies == "each line"
        else "line 9 is of step 10, after "
    )
    metrics, events = capsys.readouterr().err.splitlines()
    assert metrics.startswith(f"warning: {run.metrics_file}: {first}") and metrics.endswith(
        " (and 7 more); left out"
    )
    assert events == f"warning: {run.events_file}: has 4 lines instead of the 2 that status.json records"
    # A run that goes on adds events.
    run.write_status(**{**run.status(), "status": "running"})
    run.add_event({"kind": "alarm"})
    run.events()
    assert capsys.readouterr().err == ""


def test_the_line_of_a_best_checkpoint_that_a_rollback_keeps_is_in_no_order(
    run_copy: Path, capsys: Err
) -> None:
    run = RunDirectory(run_copy)
    run.drop_metrics_after(20, evaluated_at=20, keep_best=True)
    run.add_metrics({"kind": "step", "step": 30, "epoch": 3.0})
    assert [(line["kind"], line["step"]) for line in run.metrics()] == [
        ("step", 10), ("epoch", 10), ("step", 20), ("epoch", 20), ("best", 40), ("step", 30)
    ]  # fmt: skip
    # What is removed on purpose is not lost.
    assert capsys.readouterr().err == "" and run.status()["lines"]["metrics.jsonl"] == 5


def test_the_line_of_an_evaluation_that_will_be_repeated_is_removed(run_copy: Path) -> None:
    run = RunDirectory(run_copy)
    # Killed after the evaluation at the last step, before the state with it was written.
    run.drop_metrics_after(40, evaluated_at=30)
    assert [(line["kind"], line["step"]) for line in run.metrics()][-2:] == [("epoch", 30), ("step", 40)]


def test_files_that_every_run_has_are_said_to_be_missing(run_copy: Path, capsys: Err) -> None:
    run = RunDirectory(run_copy)
    for file in (run.status_file, run.environment_file):
        file.unlink()
    read_contents(run_copy)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == sorted(
        map(str, (run.status_file, run.environment_file))
    )
    assert all(": is missing; " in line for line in lines)


def test_the_best_classifier_is_expected_even_if_the_metrics_are_lost(run_copy: Path) -> None:
    run = RunDirectory(run_copy)
    run.write_status(**{**run.status(), "selected": True})
    shutil.copytree(run.best_classifier.parent, run.last_classifier.parent)
    for file in (run.metrics_file, run.best_classifier):
        file.unlink()
    assert list(run.classifiers()) == ["best", "last"]


@pytest.mark.parametrize(
    "line",
    [
        {"kind": 3, "step": 1, "epoch": 1.0},
        {"kind": "step", "step": -1, "epoch": 1.0},
        {"kind": "step", "step": True, "epoch": 1.0},
        {"kind": "step", "step": 1, "epoch": float("nan")},
        {"kind": "step", "step": 1, "epoch": "1"},
        {"kind": "step", "step": 1, "epoch": None},
        {"kind": "step", "step": 1},
        {"kind": "step", "step": 1, "epoch": 1.0, "loss": "0.5"},
        {"kind": "step", "step": 1, "epoch": 1.0, "loss": [0.5]},
        {"kind": "step", "step": 1, "epoch": 1.0, "loss": {"a": 1}},
        {"kind": "step", "step": 1, "epoch": 1.0, "terms": {"a": "1"}},
    ],
)
def test_a_line_of_other_types_is_left_out(run_copy: Path, capsys: Err, line: dict[str, Any]) -> None:
    run = RunDirectory(run_copy)
    count = len(run.metrics())
    run.add_metrics(line)
    run.add_metrics({"kind": "step", "step": 41, "epoch": 4.1, "loss": float("nan"), "terms": {"a": 1}})
    assert len(run.metrics()) == count + 1
    assert f"{run.metrics_file}: line {count + 1} has " in capsys.readouterr().err


def test_a_changed_configuration_is_refused_until_its_digest_is_removed(run_copy: Path) -> None:
    run = RunDirectory(run_copy)
    flip(run.config_file, "lr: 0.1", "lr: 0.3")
    for read in (run.config, lambda: read_contents(run_copy), lambda: read_config(run_copy)):
        with pytest.raises(ConfigError, match=r"config\.yaml: damaged or edited: .*delete that line$"):
            read()
    run.config_file.write_text(run.config_file.read_text().partition("\n")[2])
    assert run.config().training.lr == 0.3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"method: 3\n",
        b"method: {name: [1]}\n",
        b"\xe9",
        b"a: b: c",
        b"a: " + b"[" * 3000,
        bytes(9),
    ],
)
def test_what_is_no_configuration_is_one_line(run_copy: Path, content: bytes) -> None:
    RunDirectory(run_copy).config_file.write_bytes(content)
    for read in (read_contents, stored_threat):
        with pytest.raises(ConfigError) as error:
            read(run_copy)
        assert str(error.value).startswith(f"{run_copy}/config.yaml: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "threat", [5, {"norm": "linf"}, {"norm": "linf", "radius": "x"}, {"norm": 3, "radius": 1}]
)
def test_an_impossible_threat_of_a_configuration_is_one_line(run_copy: Path, threat: object) -> None:
    run = RunDirectory(run_copy)
    tree = yaml.safe_load(run.config_file.read_text())
    run.write_config(yaml.safe_dump({**tree, "threat": threat}))
    with pytest.raises(ConfigError, match=r"config\.yaml: threat: has no valid|config\.yaml: threat: is not"):
        read_contents(run_copy)


@pytest.mark.parametrize("make", [folder, link, pipe])
def test_a_configuration_that_is_no_file_is_no_run_without_one(
    run_copy: Path, make: Callable[[Path], None]
) -> None:
    run = RunDirectory(run_copy)
    make(run.config_file)
    assert run.exists()
    with pytest.raises(RunError, match=r"config\.yaml: is not a file that can be read"):
        RunDirectory.open(run_copy)
    with pytest.raises(RunError, match="holds a run already"):
        RunDirectory.check_unused(run_copy)
    with pytest.raises(ConfigError, match=r"config\.yaml: "):
        read_contents(run_copy)


def test_one_damaged_run_does_not_hide_the_others(run_copy: Path, tmp_path: Path, capsys: Err) -> None:
    other = Path(shutil.copytree(run_copy, tmp_path / "other"))
    RunDirectory(other).config_file.write_text("")
    assert [contents.path for contents in read_all([other, run_copy])] == [run_copy]
    assert capsys.readouterr().err.startswith(
        f"warning: left out: {other}/config.yaml: not the configuration"
    )
    with pytest.raises(ConfigError, match="not the configuration of a run"):
        read_all([other])
    with pytest.raises(RunError, match="no such run folder"):
        read_all([run_copy, tmp_path / "misspelt"])


ROW = {
    "protocol": "clean", "version": 1, "quantity": "accuracy", "better": "higher", "value": 0.9, "lower": 0.8,
    "upper": 0.95, "chance": 0.1, "also": {}, "count": 397, "threat": {"norm": "linf", "radius": "8/255"}, "seed": 0,
    "data": {"name": "digits", "split": "test", "images": "all 397"}, "seconds": 1.0, "device": "cpu",
    "checkpoint": {"checkpoint": "best", "epoch": 4.0, "data": "digits"},
    "facts": {"class_names": ["a", "b"], "confusion": [[1, 0], [0, 1]]},
    "lint": {"images": 20, "findings": []},
}  # fmt: skip


def test_a_row_of_an_early_version_is_read_with_less(run_copy: Path, capsys: Err) -> None:
    needed = ("protocol", "version", "value", "lower", "upper", "count", "data", "threat", "seed")
    file = run_copy / "evaluation" / "clean.json"
    file.parent.mkdir()
    file.write_text(json.dumps({key: ROW[key] for key in needed}))
    contents = read_contents(run_copy)
    (row,) = contents.others
    assert row["facts"] == {} and row["checkpoint"] == {} and row["seconds"] is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("protocol", 5, "protocol"),
        ("protocol", "\ud800", "protocol"),
        ("value", None, "value"),
        ("value", float("nan"), "value"),
        ("value", 10**19, "an accuracy outside [0, 1]"),
        ("value", True, "value"),
        ("value", "0.9", "value"),
        ("value", 1.5, "an accuracy outside [0, 1]"),
        ("lower", None, "an interval with one end"),
        ("count", 0, "count"),
        ("data", [], "data"),
        ("data", {"name": "digits", "split": "test"}, "data.images"),
        ("threat", {"norm": "linf", "radius": "1/0"}, "threat.radius"),
        ("threat", {"norm": "linf"}, "threat.radius"),
        ("checkpoint", {"epoch": "four"}, "checkpoint.epoch"),
        ("also", {"accuracy": "x"}, "also.accuracy"),
        ("lint", {"images": 20, "findings": [{"name": "x"}]}, "lint.findings.0.severity"),
        ("facts", {"class_names": ["a"], "confusion": [[1, 2]]}, "a confusion matrix of another size"),
        ("facts", {"per_class": [{"class": 3, "value": 1, "lower": 0, "upper": 1, "count": 2}]}, "a class without"),
        ("facts", {"bins": []}, "facts.bins"),
        ("facts", {"sets": {"sample": {}}, "names": {"fid": "FID"}}, "sets of images without their metrics"),
    ],
)  # fmt: skip
def test_a_row_of_other_types_is_left_out_and_the_reason_said(
    run_copy: Path, capsys: Err, key: str, value: object, reason: str
) -> None:
    write_row(run_copy, {**ROW, "protocol": "top:2", "threat": None})
    write_json(run_copy / "evaluation" / "clean.json", {**ROW, key: value})
    contents = read_contents(run_copy)
    assert list(contents.rows) == ["top:2"] and contents.others == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: left out: {run_copy}/evaluation/clean.json: ") and reason in line
    assert line.endswith("; delete it and measure again")


@pytest.mark.parametrize("make", [folder, link, pipe])
def test_a_row_that_is_no_file_is_left_out_and_makes_way_for_a_new_one(
    run_copy: Path, capsys: Err, make: Callable[[Path], None]
) -> None:
    row = {**ROW, "threat": None}
    write_row(run_copy, row)
    file = run_copy / "evaluation" / "clean.json"
    make(file)
    assert read_contents(run_copy).rows == {}
    assert f"left out: {file}: " in capsys.readouterr().err
    write_row(run_copy, row)
    assert read_contents(run_copy).rows["clean"]["value"] == 0.9
    assert f"{file}: " in (note := capsys.readouterr().err) and "moved to" in note
    file.unlink()
    file.mkdir()
    write_json(file, row)
    assert file.is_file() and "is a folder, not a file; moved to" in capsys.readouterr().err


def test_a_record_of_samples_names_its_own_figures(complete_run: Any, tmp_path: Path, capsys: Err) -> None:
    path = Path(shutil.copytree(complete_run.path, tmp_path / "full"))
    (file,) = (path / "samples").glob("*.json")
    record = json.loads(file.read_text())
    check(SampleRecord, record)
    # Not a path out of the folder.
    write_json(file, {**record, "name": "../../elsewhere"})
    write_json(path / "figures" / "energies.json", {**complete_run.diagnosis, "sets": {"clean": {}}})
    contents = read_contents(path)
    assert contents.samples == [] and contents.diagnosis is None and "clean" in contents.rows
    first, second = capsys.readouterr().err.splitlines()
    assert "energies.json: has no valid sets.clean.marginal: field required" in first
    assert f"left out: {file}: describes '../../elsewhere'" in second


def test_a_damaged_figure_is_left_out(complete_run: Any, tmp_path: Path, capsys: Err) -> None:
    path = Path(shutil.copytree(complete_run.path, tmp_path / "full"))
    name = "figures/energy-histograms.png"
    contents, file = read_contents(path), path / "figures" / "energy-histograms-dark.png"
    whole = file.read_bytes()
    assert contents.read_figure(name) == ((path / name).read_bytes(), whole)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (
        b"",
        whole[:-1],
        whole[: len(whole) // 2],
        whole + b"\0",
        bytes(flipped),
        bytes(len(whole)),
    ):
        file.write_bytes(damaged)
        assert contents.read_figure(name) is None
    assert capsys.readouterr().err == (
        f"warning: left out: {path / name}, light or dark version: is damaged, or not a PNG file; repeat the command "
        "that made it\n"
    )
    file.unlink()
    assert contents.read_figure(name) is None and capsys.readouterr().err == ""
    file.mkdir()
    assert contents.read_figure(name) is None and "is a folder, not a file" in capsys.readouterr().err


@pytest.mark.parametrize("damage", WHOLE)
def test_a_damaged_log_is_not_judged(run_copy: Path, damage: Callable[[Path], Any]) -> None:
    from trilemma.errors import DataError

    file = run_copy / "metrics.jsonl"
    assert len(read_log(run_copy)) == 4
    damage(file)
    with pytest.raises(DataError) as error:
        read_log(run_copy)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_a_lost_configuration_is_said_where_the_run_is_read_as_a_file(run_copy: Path, capsys: Err) -> None:
    (run_copy / "config.yaml").unlink()
    assert ClassifierSource(run_copy).run is None
    words = f"{run_copy / 'config.yaml'}: is missing, so this run is read as a classifier file without data"
    assert words in " ".join(capsys.readouterr().err.split("\n"))
    # Checkpoints copied on purpose have neither status nor metrics.
    for name in ("status.json", "metrics.jsonl"):
        (run_copy / name).unlink(missing_ok=True)
    assert ClassifierSource(run_copy).run is None and not capsys.readouterr().err
