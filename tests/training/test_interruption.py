"""Real processes, ended by real signals: a kill at any moment loses nothing, a polite signal saves and says so."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from tests.training.support import (
    SMALL_CHAIN,
    STEPS_PER_EPOCH,
    ScriptProcess,
    differences,
    state_of,
    tiny,
    wait_until,
)

from trilemma.config.config import Config
from trilemma.config.recipe import dump_config
from trilemma.runs.run_directory import RunDirectory
from trilemma.text_files import sealed
from trilemma.training.train import train

COMMAND = "from trilemma.cli.main import main\nmain()\n"
LIBRARY = """
import sys
from trilemma.training.train import train
train(sys.argv[1], out=sys.argv[2], progress=False)
"""


@pytest.fixture(scope="module")
def config() -> Config:
    often = {"epochs": 3, "ema": 0.9, "checkpoint_minutes": 1e-9, "evaluate_every": 5}
    return tiny("eb-jdat", often, sampler=SMALL_CHAIN, attack={"steps": 1})


@pytest.fixture(scope="module")
def recipe(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "short.yaml"
    path.write_text(dump_config(config))
    return path


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    return train(config, out=tmp_path_factory.mktemp("whole") / "run", progress=False).path


def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, config: Config, recipe: Path, whole: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    (tmp_path / "script.py").write_text(LIBRARY)
    process = ScriptProcess(tmp_path / "script.py", recipe, run.path)
    wait_until(run.metrics_file.is_file, process)
    wait = random.uniform(0, 0.3)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    assert process.finish()[0] == -signal.SIGKILL, f"ended by itself within {wait} s"
    killed_at = run.status()["step"]
    train(config, out=run.path, resume=True, progress=False)
    found = differences(state_of(whole), state_of(run.path))
    assert found == [], f"killed {wait} s after the first line, last known step {killed_at}"
    assert [row["step"] for row in run.metrics()] == [row["step"] for row in RunDirectory(whole).metrics()]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_command_leaves_with_130(
    tmp_path: Path, config: Config, recipe: Path, whole: Path, name: str
) -> None:
    run = RunDirectory(tmp_path / "run")
    (tmp_path / "command.py").write_text(COMMAND)
    process = ScriptProcess(tmp_path / "command.py", "train", recipe, "--out", run.path)
    wait_until(run.metrics_file.is_file, process)
    process.send_signal(signal.Signals[name])
    code, _, said = process.finish()
    assert code == 130, said
    assert "--resume" in said.splitlines()[-1] and "Traceback" not in said
    status = run.status()
    assert status["status"] == "interrupted" and 0 < status["step"] < 3 * STEPS_PER_EPOCH
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert lines == [sealed(line) for line in run.metrics()]
    assert run.metrics()[-1]["step"] == status["step"]
    assert run.events()[-1]["message"] == f"{name}: state saved"
    train(config, out=run.path, resume=True, progress=False)
    assert run.status()["status"] == "finished"
    assert differences(state_of(whole), state_of(run.path)) == []


def test_half_a_line_left_by_a_kill_does_not_swallow_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.add_event({"kind": "alarm", "step": 1})
    with run.events_file.open("a") as file:
        file.write('{"step": 2, "mes')
    run.add_event({"kind": "alarm", "step": 3})
    assert [event["step"] for event in run.events()] == [1, 3]
    assert capsys.readouterr().err == ""
