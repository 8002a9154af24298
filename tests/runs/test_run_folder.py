"""The run folder: what is refused, and what is written in it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from tests.training.support import SMALL_CHAIN, STEPS_PER_EPOCH, tiny

import trilemma
from trilemma.config.recipe import load_config
from trilemma.errors import NotStoredError, RunError
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.run import Run
from trilemma.training.train import train

pytestmark = pytest.mark.usefixtures("shared_cache")
STEP_KEYS = {
    "kind", "step", "epoch", "minutes", "lr", "loss", "clean_accuracy", "robust_accuracy", "energy_clean",
    "energy_adversarial", "energy_generated", "delta_marginal", "delta_joint", "shift", "shift_p95", "abnormal",
    "images_per_second", "gradient_cosine", "terms",
}  # fmt: skip
EPOCH_KEYS = {
    "kind", "step", "epoch", "minutes", "held_out_clean", "held_out_pgd10", "held_out_fgsm", "held_out_chance",
    "held_out_answers", "held_out_images", "held_out_raw_fgsm", "held_out_raw_pgd10", "selected",
}  # fmt: skip


def test_an_existing_run_is_refused_and_the_way_on_named(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", tiny("standard"))
    with pytest.raises(RunError, match=r"run: holds a run already; add --resume .* or choose another --out"):
        train(tiny("standard"), out=tmp_path / "run", progress=False)


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no run; choose another --out"):
        train(tiny("standard"), out=tmp_path, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file, not a folder; choose another --out"):
        train(tiny("standard"), out=tmp_path / "run", progress=False)


def test_an_empty_folder_is_welcome(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, tiny("standard"))
    assert RunDirectory.open(tmp_path).config() == tiny("standard")


def test_a_read_only_place_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        NotStoredError, match=r"run: cannot be written \(Read-only file system\); choose another"
    ):
        RunDirectory.create(tmp_path / "run", tiny("standard"))


@pytest.mark.parametrize("name", ["none", "empty"])
def test_what_is_no_run_cannot_be_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no such run folder" if name == "none" else "not a run folder"):
        RunDirectory.open(tmp_path / name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = tiny("eb-jdat", {"ema": 0.9}, sampler=SMALL_CHAIN, attack={"steps": 1})
    return train(config, out=tmp_path_factory.mktemp("runs") / "run", progress=False)


def test_step_lines_have_every_key_and_cover_every_step(run: Run) -> None:
    rows = [row for row in run.metrics if row["kind"] == "step"]
    assert [row["step"] for row in rows] == [5, 9, 10, 15, 18]
    for row in rows:
        assert row.keys() >= STEP_KEYS
        assert all(isinstance(row[key], float | int) for key in STEP_KEYS - {"kind", "terms"})
        assert row["terms"].keys() == {"contrastive", "alignment", "natural", "robust"}
        assert row["epoch"] == pytest.approx(row["step"] / STEPS_PER_EPOCH, abs=1e-4)
    minutes = [row["minutes"] for row in run.metrics]
    assert minutes == sorted(minutes) and minutes[0] > 0


def test_the_loss_of_a_line_is_its_weighted_terms(run: Run) -> None:
    for row in (row for row in run.metrics if row["kind"] == "step"):
        assert row["loss"] == pytest.approx(sum(row["terms"].values()), rel=1e-4)


def test_epoch_lines_say_what_was_selected(run: Run) -> None:
    rows = [row for row in run.metrics if row["kind"] == "epoch"]
    assert [row["step"] for row in rows] == [9, 18]
    assert all(row.keys() == EPOCH_KEYS for row in rows)
    assert rows[0]["selected"] is True
    selected = [row for row in rows if row["selected"]][-1]
    assert run.classifier.about["step"] == selected["step"]


def test_what_a_method_does_not_have_is_null(tmp_path: Path) -> None:
    rows = train(tiny("standard", {"epochs": 1}), out=tmp_path / "run", progress=False).metrics
    step = rows[0]
    absent = {name for name in STEP_KEYS if step[name] is None}
    assert absent == {
        "robust_accuracy", "energy_adversarial", "energy_generated",
        "delta_marginal", "delta_joint", "shift", "shift_p95", "abnormal", "gradient_cosine",
    }  # fmt: skip


def test_a_method_without_clean_forwards_lends_one_every_tenth_step(tmp_path: Path) -> None:
    config = tiny("pgd-at", attack={"steps": 1})
    rows = [r for r in train(config, out=tmp_path / "run", progress=False).metrics if r["kind"] == "step"]
    assert [row["clean_accuracy"] is not None for row in rows] == [True, False, False, True, False]
    assert all(row["robust_accuracy"] is not None for row in rows)


def test_the_folder_holds_what_the_documentation_lists(run: Run) -> None:
    directory = RunDirectory.open(run.path)
    assert load_config(str(run.path / "config.yaml")) == directory.config()
    environment = directory.environment()
    assert (
        environment["trilemma"] == trilemma.__version__ and environment["device"] and environment["started"]
    )
    assert directory.events() == []
    status = json.loads((run.path / "status.json").read_text())
    assert status["status"] == "finished" and status["step"] == 18 and status["epochs"] == 2
    assert status["minutes"] > 0 and status["seconds_per_step"] > 0 and status["peak_memory_mb"] > 50
    for name in ("last/state", "last/classifier", "best/classifier"):
        assert (run.path / "checkpoints" / f"{name}.safetensors").is_file()
    assert not [file for file in run.path.rglob("*") if file.name.endswith(".tmp")]


def test_the_time_limit_stops_after_a_whole_step_with_classifiers(tmp_path: Path) -> None:
    config = tiny("standard", {"epochs": 1000, "max_minutes": 0.01})
    train(config, out=tmp_path / "run", progress=False)
    directory = RunDirectory.open(tmp_path / "run")
    status = directory.status()
    assert status["status"] == "stopped" and 0 < status["step"] < 9000
    assert 0.01 <= status["minutes"] < 0.05
    assert directory.events()[-1]["name"] == "max-minutes"
    assert directory.metrics()[-1]["kind"] == "epoch" and directory.metrics()[-1]["step"] == status["step"]
    assert trilemma.load(directory.last_classifier).about["step"] == status["step"]
    assert trilemma.load(tmp_path / "run").about["checkpoint"] == "best"


def test_a_long_run_is_read_thinned_out(run_copy):
    run = RunDirectory(run_copy)
    epochs = [line for line in run.metrics() if line["kind"] != "step"]
    step = next(line for line in run.metrics() if line["kind"] == "step")
    last = run.status()["step"]
    run.write_metrics([*({**step, "step": number} for number in range(1, last + 1)), *epochs])
    assert [line["step"] for line in run.metrics(last) if line["kind"] == "step"] == [*range(1, last + 1)]
    thinned = run.metrics(5)
    steps = [line["step"] for line in thinned if line["kind"] == "step"]
    stride = -(-last // 5)
    assert steps == [*range(stride, last, stride), last]
    assert [line for line in thinned if line["kind"] != "step"] == epochs
