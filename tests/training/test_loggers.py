"""Loggers: what they are called with, what a failing one does, and the adapters with the real packages, offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.support import tiny

import trilemma
from trilemma.errors import ConfigError, MissingExtraError
from trilemma.runs.run_directory import RunDirectory
from trilemma.training import loggers
from trilemma.training.train import train

STEP = {"kind": "step", "step": 5, "epoch": 0.5, "loss": 1.5, "energy_clean": None, "terms": {"natural": 0.5}}
EPOCH = {"kind": "epoch", "step": 9, "epoch": 1.0, "held_out_clean": 0.75, "selected": True}
ALARM = {"kind": "alarm", "name": "divergence", "message": "loss not finite", "step": 9, "epoch": 1.0}
IMAGES = {
    "kind": "images",
    "step": 9,
    "epoch": 1.0,
    "clean": torch.rand(3, 1, 8, 8),
    "adversarial": torch.rand(3, 1, 8, 8),
}
RECORDS = (STEP, EPOCH, ALARM, IMAGES)


def feed(log: loggers.Log) -> None:
    for record in RECORDS:
        log(record, record["step"])  # type: ignore[arg-type]


def test_a_logger_gets_what_the_run_folder_gets_and_images(
    tmp_path: Path, linear_network: dict[str, str]
) -> None:
    records: list[dict[str, Any]] = []

    def log(record: dict[str, Any], step: int) -> None:
        assert step == record["step"]
        records.append(dict(record))
        # What a logger does to its record changes nothing.
        record.clear()

    config = tiny("pgd-at", network=linear_network, attack={"steps": 1})
    run = train(config, out=tmp_path / "run", progress=False, log=[log, lambda record, step: None])
    assert [one for one in records if one["kind"] in ("step", "epoch")] == run.metrics
    folder = RunDirectory(tmp_path / "run")
    assert [one for one in records if "message" in one] == folder.events()
    images = [one for one in records if one["kind"] == "images"]
    assert [one["step"] for one in images] == [one["step"] for one in run.metrics if one["kind"] == "epoch"]
    assert images[0]["clean"].shape == images[0]["adversarial"].shape == (loggers.IMAGES, 1, 8, 8)
    assert "generated" not in images[0] and not images[0]["adversarial"].requires_grad
    distance = (images[0]["adversarial"] - images[0]["clean"]).abs().amax()
    assert 0 < distance <= 0.2 + 1e-6


def test_a_failing_logger_does_not_lose_the_run(
    tmp_path: Path, linear_network: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def broken(record: dict[str, Any], step: int) -> None:
        calls.append(step)
        raise ConnectionError("no route to host")

    config = tiny("standard", network=linear_network)
    run = train(config, out=tmp_path / "run", progress=False, log=broken)
    assert run.metrics[-1]["epoch"] == 2 and len(calls) > 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: log: a logger raised ConnectionError: no route to host")
    (event,) = [one for one in RunDirectory(run.path).events() if one["kind"] == "warning"]
    assert "no route to host" in event["message"]


def test_something_that_cannot_be_called_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pass a function log\(record, step\)"):
        train(tiny("standard"), out=tmp_path / "run", log="wandb")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_numbers_and_pictures_of_a_record() -> None:
    assert loggers.numbers(STEP) == {"epoch": 0.5, "loss": 1.5, "terms/natural": 0.5}
    assert loggers.numbers(ALARM) == loggers.numbers(IMAGES) == {}
    images = torch.zeros(2, 3, 4, 5)
    images[1, 0] = 1.0
    (picture,) = loggers.pictures({"kind": "images", "clean": images}).values()
    assert picture.shape == (4, 10, 3) and picture.dtype == np.uint8
    assert (
        (picture[:, :5] == 0).all() and (picture[:, 5:, 0] == 255).all() and (picture[:, 5:, 1:] == 0).all()
    )


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # makes importing it fail
    with pytest.raises(MissingExtraError, match=f"pip install {name}"):
        getattr(trilemma.loggers, name)()


@pytest.mark.filterwarnings("default")
def test_weights_and_biases_gets_numbers_images_and_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"call wandb\.init"):
        trilemma.loggers.wandb()
    run = wandb.init(project="trilemma", mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True))
    feed(trilemma.loggers.wandb())
    summary = dict(run.summary)
    folder = Path(run.dir)
    run.finish()
    assert summary["loss"] == 1.5 and summary["terms/natural"] == 0.5 and summary["held_out_clean"] == 0.75
    assert summary["step"] == 9 and summary["alarm: divergence"] == "step 9: loss not finite"
    assert len(list((folder / "media" / "images").rglob("*.png"))) == 2


@pytest.mark.filterwarnings("default")
def test_mlflow_gets_numbers_images_and_alarms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    with mlflow.start_run() as run:
        feed(trilemma.loggers.mlflow())
    client = mlflow.MlflowClient()
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "terms/natural")] == [
        (5, 0.5)
    ]
    data = client.get_run(run.info.run_id).data
    assert data.metrics["held_out_clean"] == 0.75
    assert data.tags["alarm.divergence"] == "step 9: loss not finite"
    pictures = [path.name for path in (tmp_path / "store").rglob("*.png")]
    assert {name.partition("+")[0] for name in pictures} == {"images~clean", "images~adversarial"}


@pytest.mark.filterwarnings("default")
def test_trackio_gets_numbers_images_and_alarms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    trackio.init(project="trilemma", name="first", embed=False)
    feed(trilemma.loggers.trackio())
    trackio.finish()
    metrics: dict[str, Any] = {}
    for line in trackio.SQLiteStorage.get_logs("trilemma", "first"):
        metrics |= {name: (line["step"], value) for name, value in line.items()}
    assert metrics["terms/natural"] == (5, 0.5) and metrics["held_out_clean"] == (9, 0.75)
    assert {"images/clean", "images/adversarial"} < metrics.keys()
    (run,) = trackio.Api().runs("trilemma")
    assert [(one["title"], one["text"], one["level"]) for one in run.alerts()] == [
        ("alarm: divergence", "step 9: loss not finite", "warn")
    ]
