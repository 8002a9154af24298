"""A run that begins with other weights: those of a run, of a file, or of a stage that is trained first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.training.conftest import Interrupt
from tests.training.support import (
    STEPS_PER_EPOCH,
    TREE,
    TWO_PROCESSES,
    ScriptProcess,
    differences,
    finished_weights,
    skip_without_loopback,
    state_of,
    tiny,
)

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.config.recipe import build_config, dump_config
from trilemma.errors import CheckpointError, ConfigError, UnknownNameError, UserError
from trilemma.networks.create import create_network
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.checkpoint import load_state
from trilemma.training.estimate import estimate
from trilemma.training.run import Run
from trilemma.training.train import train


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run to begin with. Do not write into it."""
    return train(
        tiny("pgd-at", {"epochs": 1}, attack={"steps": 2}),
        out=tmp_path_factory.mktemp("runs") / "first",
        progress=False,
    )


def second(start: str | Path, method: str = "standard", **training: Any) -> Config:
    return tiny(method, {"start": str(start), "epochs": 1, "seed": 7, **training})


def dual(start: str | Path, **training: Any) -> Config:
    """A second stage whose curriculum grows every eight batches."""
    settings = {"start": str(start), "reestimate_bn": False, "ema": 0.9, "lr": 0.001, **training}
    tree = {
        **TREE,
        "method": {"name": "dat", "threshold": 0.0},
        "attack": {"steps": 1},
        "sampler": {"steps": 2},
        "augmentation": {"cutout": 2},
        "training": {**TREE["training"], **settings},
    }
    return build_config(tree)


@pytest.mark.parametrize("kind", ["run", "file"])
def test_weights_and_statistics_of_the_first_are_those_of_the_seconds_beginning(
    first: Run, tmp_path: Path, kind: str
) -> None:
    start = first.path if kind == "run" else tmp_path / "model.safetensors"
    if kind == "file":
        first.classifier.save(start)
    run = train(second(start, lr=1e-12, reestimate_bn=False, ema=0.9), out=tmp_path / "run", progress=False)
    began, ended = first.classifier.state_dict(), run.classifier.state_dict()
    for name, value in began.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(ended[name], value, atol=1e-6, rtol=0)
    event = RunDirectory.open(run.path).events()[0]
    assert (event["kind"], event["name"], event["step"]) == ("start", "weights", 0)
    assert event["message"] == f"of {start} (best of epoch 1, run)"


def test_another_seed_begins_with_the_same_weights(
    first: Run, tmp_path: Path, interrupt_after: Interrupt
) -> None:
    interrupt_after(1)
    states = []
    for seed in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(second(first.path, lr=1e-12, seed=seed), out=tmp_path / str(seed), progress=False)
        states.append(load_state(RunDirectory(tmp_path / str(seed)).state_file)["weights"])
    for name, value in states[0].items():
        if "running" not in name:
            torch.testing.assert_close(value, states[1][name], atol=1e-6, rtol=0)


def stage_file(folder: Path, **change: Any) -> Path:
    """A first stage as a recipe file, with data, network, threat and seed that must not count."""
    tree = yaml.safe_load(dump_config(tiny("pgd-at", {"epochs": 1, "seed": 3}, attack={"steps": 1})))
    tree["network"]["width"] = 8
    tree["threat"]["radius"] = "0.1"
    del tree["attack"]
    tree["attack"] = {"steps": 1}
    tree["training"].update(change)
    (folder / "first.yaml").write_text(yaml.safe_dump(tree))
    return folder / "first.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both stages without an interruption. Do not write into it."""
    folder = tmp_path_factory.mktemp("staged")
    return train(dual(stage_file(folder)), out=folder / "run", progress=False)


def test_a_recipe_is_trained_first_on_the_data_network_threat_and_seed_of_the_run(whole: Run) -> None:
    stage = RunDirectory.open(whole.path).first_stage
    config = stage.config()
    assert stage.status()["status"] == "finished" and config.method.name == "pgd-at"
    assert config.network.width == 4 and config.training.seed == 0  # type: ignore[attr-defined]
    assert config.threat is not None and config.threat.radius == "0.2" and config.attack.step_size == "1/20"
    event = RunDirectory.open(whole.path).events()[0]
    assert "first.yaml (best of epoch 1, " in event["message"]
    # BatchNorm has the very statistics of the first stage
    buffers = {name: value for name, value in load(stage.path).state_dict().items() if "running" in name}
    assert buffers
    for name, value in buffers.items():
        torch.testing.assert_close(whole.classifier.state_dict()[name], value, atol=1e-6, rtol=0)
    rows = [row for row in whole.metrics if row["kind"] == "step"]
    assert rows[-1]["terms"].keys() == {"robust", "real", "outside", "auc", "steps"}
    assert rows[0]["terms"]["steps"] == 0 and rows[-1]["terms"]["steps"] > 0


@pytest.mark.parametrize("step", [4, STEPS_PER_EPOCH + 3], ids=["in the first stage", "in the second"])
def test_an_interruption_in_either_stage_changes_nothing(
    whole: Run, tmp_path: Path, interrupt_after: Interrupt, step: int
) -> None:
    config = RunDirectory.open(whole.path).config()
    path = tmp_path / "broken"
    interrupt_after(step)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(config, out=path, progress=False)
    run = RunDirectory.open(path)
    assert run.state_file.is_file() == (step > STEPS_PER_EPOCH)
    assert run.first_stage.status()["status"] == ("finished" if step > STEPS_PER_EPOCH else "interrupted")
    if step > STEPS_PER_EPOCH:
        shutil.rmtree(run.first_stage.path)  # the state wins: where it began is not asked for again
    interrupt_after(0)
    resumed = train(config, out=path, resume=True, progress=False)
    assert differences(state_of(whole.path), state_of(resumed.path)) == []
    assert differences(resumed.classifier.state_dict(), whole.classifier.state_dict()) == []


def test_a_finished_first_stage_is_not_trained_again(
    whole: Run, tmp_path: Path, interrupt_after: Interrupt
) -> None:
    config = RunDirectory.open(whole.path).config()
    run = RunDirectory.create(tmp_path / "run", config)  # as after a kill between the stages
    shutil.copytree(RunDirectory(whole.path).first_stage.path, run.first_stage.path)
    interrupt_after(1)  # the first step of anything
    with pytest.raises(KeyboardInterrupt):
        train(config, out=run.path, resume=True, progress=False)
    assert run.status()["step"] == 1 and run.first_stage.status()["status"] == "finished"


def test_a_first_stage_of_another_recipe_is_refused(whole: Run, tmp_path: Path) -> None:
    config = RunDirectory.open(whole.path).config()
    run = RunDirectory.create(tmp_path / "run", config)
    RunDirectory.create(run.first_stage.path, tiny("standard"))
    with pytest.raises(ConfigError, match=r"stage-1: cannot resume with "):
        train(config, out=run.path, resume=True, progress=False)


def other(tmp_path: Path, toy: Any, case: str) -> str:
    """Something that this run cannot begin with."""
    path = tmp_path / "model.safetensors"
    if case == "channels":
        options = tiny("standard").network
        network = create_network(options, 10, (3, 8, 8))
        config = options.model_dump(mode="json")
        Classifier(network, 10, image_shape=(3, 8, 8), network_config=config).save(path)
    elif case == "weights":
        torch.save(toy.mlp(classes=10).network.state_dict(), path.with_suffix(".pt"))
        return str(path.with_suffix(".pt"))
    elif case == "architecture":
        clf = toy.mlp(classes=10, shape=(1, 8, 8))
        Classifier(clf.network, 10, [0.5], [0.5], image_shape=(1, 8, 8)).save(path)
    elif case == "empty":
        (tmp_path / "folder").mkdir()
        return str(tmp_path / "folder")
    elif case == "circle":
        for name, following in (("a", "b"), ("b", "a")):
            tree = yaml.safe_load(dump_config(second(tmp_path / f"{following}.yaml")))
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        return str(tmp_path / "a.yaml")
    else:
        return {"nothing": "runs/none", "misspelt": "digits/pgd-att", "no file": "first.yaml"}[case]
    return str(path)


MISTAKES: dict[str, tuple[type[UserError], str]] = {
    "nothing": (CheckpointError, r"runs/none is neither a recipe nor a run folder or classifier file"),
    "misspelt": (CheckpointError, r"Did you mean 'digits/pgd-at'\?"),
    "no file": (UnknownNameError, r"recipe file first\.yaml does not exist"),
    "empty": (CheckpointError, r"folder: not a run folder"),
    "channels": (
        CheckpointError,
        r"takes images of shape \(C, H, W\) \[3, 8, 8\], but those of this run have \[1, 8",
    ),
    "weights": (CheckpointError, r"model\.pt: weights of another architecture"),
    "architecture": (
        CheckpointError,
        r"weights of another network|whose network|network=|another architecture",
    ),
    "circle": (ConfigError, r"a\.yaml -> .*b\.yaml -> .*change training\.start"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_a_run_cannot_begin_with_is_said_before_anything_is_written(
    toy: Any, tmp_path: Path, case: str
) -> None:
    error, message = MISTAKES[case]
    config = second(other(tmp_path, toy, case))
    with pytest.raises(error, match=message) as raised:
        train(config, out=tmp_path / "run", progress=False)
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()
    checks = {check["name"]: check for check in estimate(config)["checks"]}
    assert not checks["start"]["ok"] and checks["start"]["message"]


def test_outside_images_that_cannot_be_had_are_said_before_a_first_stage_is_trained(tmp_path: Path) -> None:
    asked = {"method.outside": str(tmp_path / "nowhere"), "training.epochs": 1}
    with pytest.raises(UserError, match="nowhere"):
        train("digits/dat", asked, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_validate_says_what_a_run_will_begin_with(first: Run, tmp_path: Path) -> None:
    def said(start: Path) -> str:
        (check,) = (check for check in estimate(second(start))["checks"] if check["name"] == "start")
        assert check["ok"]
        return str(check["message"])

    assert said(first.path) == f"weights of {first.path} (best of epoch 1, run)"
    stage = stage_file(tmp_path)
    assert said(stage) == f"{stage} is trained first (1 epochs), which is not counted here"
    assert all(check["name"] != "start" for check in estimate(tiny("standard"))["checks"])


def test_two_processes_train_both_stages_and_walk_equally_far(tmp_path: Path) -> None:
    config = dual(stage_file(tmp_path), epochs=1)
    (tmp_path / "second.yaml").write_text(dump_config(config))
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    process = ScriptProcess(tmp_path / "script.py", tmp_path / "second.yaml", tmp_path / "run")
    code, _, complained = process.finish(240)
    skip_without_loopback(complained)
    assert code == 0, complained[-3000:]
    weights = finished_weights(tmp_path / "run")
    assert len(weights) == 2 and len(set(weights)) == 1
    run = RunDirectory.open(tmp_path / "run")
    assert run.first_stage.status()["status"] == run.status()["status"] == "finished"
    rows = [row for row in run.metrics() if row["kind"] == "step"]
    assert rows[-1]["terms"]["steps"] == 0.25  # the mean of 0, 0, 0 and, on the ninth batch, 1
