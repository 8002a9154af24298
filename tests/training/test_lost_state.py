"""A run whose last training state is lost or damaged goes back to the newest sound one, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import Interrupt
from tests.training.support import STEPS_PER_EPOCH, differences, state_of, tiny, without_clock

from trilemma.config.config import Config
from trilemma.errors import DamagedError, RunError
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.checkpoint import load_state, newest_sound_state, save_state
from trilemma.training.rollback import sound_state
from trilemma.training.train import train


@pytest.fixture
def config(linear_network: dict[str, str]) -> Config:
    return tiny("standard", {"epochs": 3, "log_every": STEPS_PER_EPOCH}, network=linear_network)


@pytest.fixture
def run(config: Config, tmp_path: Path, interrupt_after: Interrupt) -> RunDirectory:
    """A run interrupted in its third epoch, with an older state beside the last one."""
    interrupt_after(2 * STEPS_PER_EPOCH + 4)
    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "run", progress=False)
    interrupt_after(0)
    found = RunDirectory.open(tmp_path / "run")
    assert list(found.earlier_states()) == [2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 4]
    return found


def lose(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[:-10])
    elif how == "flipped":
        content[-10] ^= 1
        path.write_bytes(content)
    elif how == "empty":
        path.touch()


def lines(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [without_clock(line) for line in metrics]


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped", "empty"])
def test_the_newest_sound_state_is_resumed_and_named(
    config: Config, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    whole = train(config, out=tmp_path / "whole", progress=False)
    # The copy of the last state for rollbacks is the same file, by a hard link.
    lose(run.earlier_state(2 * STEPS_PER_EPOCH + 4), how)
    lose(run.state_file, how)
    resumed = train(config, out=run.path, resume=True, progress=False)
    printed = capsys.readouterr().err
    assert printed.startswith(f"warning: {run.state_file}: ") and printed.count("\n") == 1
    assert printed.endswith(f"; going back to state-{2 * STEPS_PER_EPOCH:09d}.safetensors\n")
    event = next(event for event in run.events() if event["kind"] == "restart")
    assert event["message"] == f"from the checkpoint of step {2 * STEPS_PER_EPOCH}, the newest sound one"
    assert differences(state_of(whole.path), state_of(run.path)) == []
    # No line twice: the lines of an uninterrupted run.
    assert lines(resumed.metrics) == lines(whole.metrics)


def test_a_sound_copy_of_the_lost_state_loses_nothing(config: Config, run: RunDirectory) -> None:
    lose(run.state_file, "missing")
    train(config, out=run.path, resume=True, progress=False)
    event = next(event for event in run.events() if event["kind"] == "restart")
    assert event["step"] == 2 * STEPS_PER_EPOCH + 4


def test_without_a_sound_state_it_is_refused_and_restart_begins_again(
    config: Config, run: RunDirectory, tmp_path: Path
) -> None:
    for path in run.states():
        lose(path, "flipped")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for resume in (True, "auto"):
        with pytest.raises(RunError, match=r"no sound training state is left .*; add --restart"):
            train(config, out=run.path, resume=resume, progress=False)
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    whole = train(config, out=tmp_path / "whole", progress=False)
    again = train(config, out=run.path, resume="restart", progress=False)
    assert lines(again.metrics) == lines(whole.metrics)
    assert differences(state_of(whole.path), state_of(run.path)) == []
    assert [event["name"] for event in run.events() if event["kind"] == "restart"] == ["from-step-0"]


def test_logs_that_cannot_be_continued_are_set_aside_and_the_run_is_resumed(
    config: Config, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(config, out=tmp_path / "whole", progress=False)
    events = len(run.events())
    flipped = run.metrics_file.read_text().replace('"epoch": 1.0', '"epoch": 1.5', 1)
    run.metrics_file.write_text(flipped)
    for file in (run.status_file, run.events_file):
        file.rename(run.path / f"my-{file.name}")
        file.mkdir()
    run.environment_file.write_text("{")
    resumed = train(config, out=run.path, resume=True, progress=False)
    assert differences(state_of(whole.path), state_of(run.path)) == []
    # The damaged line is lost from the log, and kept in the file beside it.
    steps = [line["step"] for line in resumed.metrics if line["kind"] == "step"]
    assert steps == [2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 4, 3 * STEPS_PER_EPOCH]
    evaluations = [
        lines([line for line in metrics if line["kind"] == "epoch"])
        for metrics in (resumed.metrics, whole.metrics)
    ]
    assert evaluations[0] == evaluations[1]
    assert (run.path / "metrics.jsonl.damaged-1").read_text() == flipped
    assert (run.path / "events.jsonl.damaged-1").is_dir() and (run.path / "status.json.damaged-1").is_dir()
    assert run.status()["status"] == "finished" and 0 < len(run.events()) <= events + 1
    # The classifiers know the recipe that environment.json has lost.
    assert resumed.classifier.about["recipe"] == whole.classifier.about["recipe"]
    printed = capsys.readouterr().err
    for file, sound in ((run.status_file, 0), (run.events_file, 0), (run.metrics_file, 4)):
        renamed = f"renamed to {file.name}.damaged-1, and continued with {sound} sound lines"
        assert f"warning: {file}: damaged; {renamed}" in printed
    assert f"warning: {run.environment_file}: is not JSON" in printed


def test_a_status_that_says_more_than_the_state_is_not_believed(
    config: Config, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(config, out=tmp_path / "whole", progress=False)
    run.write_status(**RunDirectory(whole.path).status())
    assert run.status()["status"] == run.summary()["status"] == "interrupted"
    train(config, out=run.path, resume=True, progress=False)
    assert differences(state_of(whole.path), state_of(run.path)) == []
    assert capsys.readouterr().err == (
        f"warning: {run.status_file}: says finished at step 27, but the newest training state is of step 22, so the "
        "run has not ended; train --resume goes on from there\n"
    )
    # Ended as the status says, and without any state as well: nothing contradicts it.
    assert run.status()["status"] == "finished"
    for state in run.states():
        state.unlink()
    assert run.status()["status"] == "finished"


@pytest.mark.parametrize("status", ["running", None])
def test_a_run_that_has_ended_without_its_status_is_ended_again(
    config: Config, tmp_path: Path, status: str | None
) -> None:
    run = RunDirectory(train(config, out=tmp_path / "run", progress=False).path)
    content = run.status()
    run.status_file.unlink()
    if status is not None:
        run.write_status(**{**content, "status": status})
    # Killed before the last classifier was written.
    run.last_classifier.unlink()
    before, metrics = run.best_classifier.read_bytes(), run.metrics()
    again = train(config, out=run.path, resume=True, progress=False)
    assert run.status()["status"] == "finished" and run.last_classifier.is_file()
    assert again.metrics == metrics and run.best_classifier.read_bytes() == before


def test_lost_lines_of_the_logs_are_said_and_recorded_by_a_resumed_run(
    config: Config, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join(kept[:1] + kept[2:]))
    run.events_file.unlink()
    resumed = train(config, out=run.path, resume=True, progress=False)
    cut = f"has {len(kept) - 1} of the {len(kept)} lines that status.json records; the others are lost"
    lost = "is missing; lost lines: 1"
    assert capsys.readouterr().err == (
        f"warning: {run.metrics_file}: {cut}\nwarning: {run.events_file}: {lost}\n"
    )
    (event,) = (event for event in run.events() if event["kind"] == "restart")
    assert event["message"] == f"from the checkpoint of step 22; metrics.jsonl {cut}; events.jsonl {lost}"
    # Said once: the numbers are those of the new logs.
    assert run.metrics() == resumed.metrics and run.status()["status"] == "finished"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_resumed_run_without_its_best_classifier_selects_a_later_one(
    config: Config, run: RunDirectory, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    lose(run.best_classifier, how)
    # No later accuracy would exceed it.
    state = load_state(run.state_file)
    state["position"]["best"] = [1.0, 1.0, 1.0]
    save_state(run.state_file, state)
    resumed = train(config, out=run.path, resume=True, progress=False)
    assert resumed.classifier.about["step"] == 27
    assert capsys.readouterr().err.endswith("; the best classifier is selected among later ones\n")
    (event,) = (event for event in run.events() if event["kind"] == "restart")
    assert event["message"].endswith("; the best classifier was lost")


def test_a_state_with_the_name_of_another_step_is_passed_over(run: RunDirectory) -> None:
    # A copy that a file manager makes is none of the stored states.
    copy = run.state_file.with_name(f"state-{18:09d} (1).safetensors")
    copy.write_bytes(run.state_file.read_bytes())
    assert list(run.earlier_states()) == [18, 22]
    copy.rename(run.earlier_state(20))
    lose(run.state_file, "missing")
    lose(run.earlier_state(22), "missing")
    found = newest_sound_state(run.states())
    assert found is not None and found.path == run.earlier_state(18)
    assert found.damaged[1].startswith(f"{run.earlier_state(20)}: holds the state of step 22; ")


def test_restart_of_a_run_with_a_sound_state_resumes_it(config: Config, run: RunDirectory) -> None:
    train(config, out=run.path, resume="restart", progress=False)
    assert [event["name"] for event in run.events() if event["kind"] == "restart"] == ["resume"]


def test_a_rollback_passes_over_damaged_states_for_the_one_before(tmp_path: Path) -> None:
    files = {step: tmp_path / f"state-{step}.safetensors" for step in (0, 10, 20, 30)}
    for step, path in files.items():
        save_state(path, {"step": step})
    assert sound_state(files, 20, 25) == (20, {"step": 20})
    lose(files[20], "flipped")
    assert sound_state(files, 20, 25) == (10, {"step": 10})
    lose(files[10], "truncated")
    lose(files[0], "missing")
    # From after the onset, if there is nothing else.
    assert sound_state(files, 20, 25) == (30, {"step": 30})
    lose(files[30], "empty")
    with pytest.raises(DamagedError):
        sound_state(files, 20, 25)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"status": "finished", "status": "failed"}'])
def test_a_damaged_status_or_environment_does_not_keep_a_run_from_being_resumed(
    config: Config, run: RunDirectory, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    files = [run.status_file, run.path / "environment.json"]
    for file in files:
        file.write_bytes(damage)
    if damage == b"{":
        train(config, out=run.path, resume=True, progress=False)
        assert run.status()["status"] == "finished"
    assert run.environment() == {} and (damage == b"{" or run.status() == {})
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == sorted(map(str, files))


@pytest.mark.parametrize("name", ["state_file", "best_classifier", "last_classifier"])
def test_a_folder_in_the_place_of_a_file_is_said_before_the_run_goes_on(
    tmp_path: Path, interrupt_after: Interrupt, name: str
) -> None:
    interrupt_after(STEPS_PER_EPOCH + 2)
    with pytest.raises(KeyboardInterrupt):
        train(tiny("standard"), out=tmp_path / "run", progress=False)
    interrupt_after(0)
    file = getattr(RunDirectory(tmp_path / "run"), name)
    file.unlink(missing_ok=True)
    file.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=f"{file.name}: is a folder, not a file; move it away, then continue"):
        train(tiny("standard"), out=tmp_path / "run", resume=True, progress=False)
    assert sorted(tmp_path.rglob("*")) == before
    file.rmdir()
    train(tiny("standard"), out=tmp_path / "run", resume=True, progress=False)
    assert RunDirectory(tmp_path / "run").status()["status"] == "finished"
