"""A run that was interrupted and resumed is the run that never was: bit for bit on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import Interrupt
from tests.training.support import SMALL_CHAIN, STEPS_PER_EPOCH, differences, state_of, tiny, without_clock

from trilemma.config.config import Config
from trilemma.errors import ConfigError, DataError, RunError
from trilemma.runs.run_directory import RunDirectory
from trilemma.samplers.replay_buffer import CHAINS
from trilemma.training.checkpoint import load_state, save_state
from trilemma.training.train import train

CASES: dict[str, Any] = {
    "standard": {},
    "pgd-at": {"attack": {"steps": 2}, "regulariser": {"name": "der", "beta": 0.5}},
    "trades": {"attack": {"steps": 2}, "update": {"name": "awp", "from_epoch": 2}},
    "n-fgsm": {"optimiser": {"name": "adam"}, "schedule": {"name": "cyclic"}},
    "free-at": {"training": {"epochs": 1}},  # interrupted within the eight replays of its second batch
    "sada-jem": {"sampler": SMALL_CHAIN, "update": {"name": "sam"}, "training": {"input_noise": 0.03}},
    "eb-jdat": {"sampler": SMALL_CHAIN, "attack": {"steps": 2}, "training": {"ema": 0.9}},
}


@pytest.fixture(params=CASES)
def config(request: pytest.FixtureRequest) -> Config:
    return tiny(request.param, **CASES[request.param])


def chains_of(path: Path) -> dict[str, Any]:
    """The chains beside each classifier of a run: class names, images and labels."""
    return {file.parent.name: [*CHAINS.read(file)] for file in path.glob("checkpoints/*/chains.safetensors")}


def interrupted(config: Config, path: Path) -> RunDirectory:
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(config, out=path, progress=False)
    return RunDirectory.open(path)


def test_a_run_interrupted_within_an_epoch_ends_as_if_it_had_not_been(
    config: Config, tmp_path: Path, interrupt_after: Interrupt
) -> None:
    whole = train(config, out=tmp_path / "whole", progress=False)
    middle = STEPS_PER_EPOCH + 3
    interrupt_after(middle)
    broken = interrupted(config, tmp_path / "broken")
    assert broken.status()["status"] == "interrupted" and broken.status()["step"] == middle
    interrupt_after(0)
    resumed = train(config, out=tmp_path / "broken", resume=True, progress=False)

    assert differences(state_of(whole.path), state_of(resumed.path)) == []
    ours, theirs = resumed.classifier.state_dict(), whole.classifier.state_dict()
    assert differences(ours, theirs) == []
    assert differences(resumed.classifier.statistics, whole.classifier.statistics) == []
    assert differences(chains_of(resumed.path), chains_of(whole.path)) == []
    assert set(chains_of(whole.path)) == ({"best", "last"} if config.method.uses_sampler else set())
    # the line right after the interruption is a mean over fewer steps; every other one is the same
    split = -(-middle // 5) * 5
    rows = [
        [without_clock(r) for r in run.metrics if r["step"] not in (middle, split)]
        for run in (whole, resumed)
    ]
    assert rows[0] == rows[1]
    names = [event["name"] for event in broken.events() if event["kind"] != "warning"]
    assert names == ["interrupted", "resume"]


def test_every_step_is_a_good_one_to_be_interrupted_at(tmp_path: Path, interrupt_after: Interrupt) -> None:
    config = tiny("eb-jdat", {"ema": 0.9, "epochs": 1}, sampler=SMALL_CHAIN, attack={"steps": 1})
    whole = train(config, out=tmp_path / "whole", progress=False)
    path = tmp_path / "broken"
    for step in range(1, STEPS_PER_EPOCH + 1):
        interrupt_after(step)
        with pytest.raises(KeyboardInterrupt):
            train(config, out=path, resume=step > 1, progress=False)
    interrupt_after(0)
    train(config, out=path, resume=True, progress=False)
    assert differences(state_of(whole.path), state_of(path)) == []


def test_resuming_with_another_configuration_is_refused(tmp_path: Path, interrupt_after: Interrupt) -> None:
    interrupt_after(1)
    interrupted(tiny("standard"), tmp_path / "run")
    interrupt_after(0)
    with pytest.raises(
        ConfigError, match=r"cannot resume with training\.lr=0\.01: .* with training\.lr=0\.05; leave"
    ):
        train(tiny("standard", {"lr": 0.01}), out=tmp_path / "run", resume=True, progress=False)


def test_of_several_differences_the_name_that_decides_the_others_is_said(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", tiny("trades"))
    with pytest.raises(
        ConfigError, match=r"with method\.name=mart: .* with method\.name=trades \(and \d+ more\)"
    ):
        train(tiny("mart", {"lr": 0.01}), out=tmp_path / "run", resume=True, progress=False)


def test_resuming_a_finished_run_returns_at_once(tmp_path: Path, interrupt_after: Interrupt) -> None:
    config = tiny("standard", {"epochs": 1})
    first = train(config, out=tmp_path / "run", progress=False)
    files = {file: file.stat().st_mtime_ns for file in first.path.rglob("*") if file.is_file()}
    interrupt_after(1)  # would be seen if a step were taken
    again = train(config, out=tmp_path / "run", resume=True, progress=False)
    assert again.metrics == first.metrics
    assert files == {file: file.stat().st_mtime_ns for file in first.path.rglob("*") if file.is_file()}


def test_resume_without_a_run_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="start it without --resume"):
        train(tiny("standard"), out=tmp_path / "none", resume=True, progress=False)
    assert not (tmp_path / "none").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    config = tiny("standard", {"epochs": 1})
    RunDirectory.create(tmp_path / "run", config)
    run = train(config, out=tmp_path / "run", resume=True, progress=False)
    assert RunDirectory.open(run.path).status()["status"] == "finished"


def test_another_time_limit_or_number_of_processes_may_be_resumed(tmp_path: Path) -> None:
    stopped = tiny("standard", {"epochs": 1, "max_minutes": 1e-6})
    train(stopped, out=tmp_path / "run", progress=False)
    run = RunDirectory.open(tmp_path / "run")
    assert run.status()["status"] == "stopped" and run.status()["step"] == 1
    train(stopped, out=tmp_path / "run", resume=True, progress=False)
    assert run.status()["status"] == "stopped" and run.status()["step"] == 1
    train(tiny("standard", {"epochs": 1}), out=tmp_path / "run", resume=True, progress=False)
    assert run.status()["status"] == "finished" and run.status()["step"] == STEPS_PER_EPOCH


def test_a_run_that_is_resumed_on_another_machine_says_that_bits_may_differ(
    tmp_path: Path,
    interrupt_after: Interrupt,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, path = tiny("standard"), tmp_path / "run"
    interrupt_after(STEPS_PER_EPOCH)
    interrupted(config, path)
    interrupt_after(0)
    capsys.readouterr()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "VSX")
    train(config, out=path, resume=True, progress=False)

    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "cpu VSX instead of" in line and "bits may differ" in line] == lines
    restart = next(event for event in RunDirectory(path).events() if event["kind"] == "restart")
    assert "cpu VSX instead of" in restart["message"]


def test_a_run_that_is_resumed_on_its_machine_says_nothing(
    tmp_path: Path, interrupt_after: Interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = tiny("standard"), tmp_path / "run"
    interrupt_after(STEPS_PER_EPOCH)
    interrupted(config, path)
    interrupt_after(0)
    capsys.readouterr()
    train(config, out=path, resume=True, progress=False)
    assert capsys.readouterr().err == ""


def test_a_run_whose_images_have_changed_is_not_resumed(tmp_path: Path, interrupt_after: Interrupt) -> None:
    source, path = tmp_path / "data.npz", tmp_path / "run"
    images, labels = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), np.arange(40) % 2
    np.savez(source, images=images, labels=labels)
    config = tiny("standard", data={"name": "folder", "root": str(source)}, training={"batch_size": 8})
    interrupt_after(2)
    interrupted(config, path)
    interrupt_after(0)
    changed = images.copy()
    changed[7, 3, 3] ^= 1
    np.savez(source, images=changed, labels=labels)
    with pytest.raises(
        DataError, match=r"run: cannot resume: its training images were imagefolder:\w+, and are "
    ):
        train(config, out=path, resume=True, progress=False)
    np.savez(source, images=images, labels=labels)
    assert train(config, out=path, resume=True, progress=False).path == path


def test_a_state_of_another_run_is_not_resumed(tmp_path: Path, interrupt_after: Interrupt) -> None:
    """The shapes of its weights fit, and its digest is right."""
    interrupt_after(STEPS_PER_EPOCH + 2)
    first, second = tiny("standard"), tiny("standard", {"seed": 7})
    own, other = interrupted(first, tmp_path / "own"), interrupted(second, tmp_path / "other")
    interrupt_after(0)
    copies = {path: path.read_bytes() for path in own.states()}
    # The file has a second name, which `cp` would overwrite too.
    own.state_file.unlink()
    shutil.copyfile(other.state_file, own.state_file)
    message = r"state\.safetensors: not a state of this run: it was made with training\.seed=7 and not 0; "
    with pytest.raises(RunError, match=message):
        train(first, out=own.path, resume=True, progress=False)
    # As the message says: without it, the run goes on from its own earlier state.
    own.state_file.unlink()
    train(first, out=own.path, resume=True, progress=False)
    assert own.status()["status"] == "finished"
    # A configuration that was changed on purpose goes with the state it had.
    for path, content in copies.items():
        path.write_bytes(content)
    own.status_file.unlink()
    own.config_file.write_text(own.config_text().replace("lr: 0.05", "lr: 0.04"))
    train(tiny("standard", {"lr": 0.04}), out=own.path, resume=True, progress=False)


def test_a_state_of_an_earlier_version_is_resumed_without_its_configuration(
    tmp_path: Path, interrupt_after: Interrupt
) -> None:
    interrupt_after(STEPS_PER_EPOCH + 2)
    run = interrupted(tiny("standard"), tmp_path / "run")
    interrupt_after(0)
    state = load_state(run.state_file)
    del state["config"]
    save_state(run.state_file, state)
    train(tiny("standard"), out=run.path, resume=True, progress=False)
    assert run.status()["status"] == "finished"
