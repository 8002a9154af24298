"""Files written while the project was called ebat still load; ``old_name`` holds a stopped run and an attack state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import trilemma
from trilemma.data import load_images
from trilemma.pages.html import write_report
from trilemma.runs.read import read_contents

OLD = Path(__file__).parent / "old_name"
pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def test_a_classifier_file_loads_and_is_saved_under_the_new_name(run: Path, tmp_path: Path) -> None:
    clf = trilemma.load(run / "checkpoints" / "best" / "classifier.safetensors")
    assert clf.threat == trilemma.Threat("linf", "0.2") and clf.about["recipe"] == "digits/pgd-at"
    clf.save(tmp_path / "new.safetensors")
    again = trilemma.load(tmp_path / "new.safetensors")
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(clf(images), again(images))


def test_the_stored_rows_are_those_of_the_stored_weights(run: Path) -> None:
    row = json.loads((run / "evaluation" / "clean.json").read_text())
    assert (
        trilemma.evaluate(trilemma.load(run), "digits", ["clean"], images=20)["clean"]["value"]
        == row["value"]
    )


def test_a_stopped_run_is_resumed_and_reported(run: Path) -> None:
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("max_minutes: 0.0001", "max_minutes: null")
    )
    resumed = trilemma.train(str(run / "config.yaml"), out=run, resume=True, progress=False, device="cpu")
    assert [row["step"] for row in resumed.metrics if row["kind"] == "step"] == [1, 2, 3, 4]
    contents = read_contents(run)
    assert contents.status["status"] == "finished" and set(contents.rows) == {"clean", "pgd-20"}
    assert "0.1.0" in write_report(run).read_text()


def test_an_interrupted_autoattack_goes_on(run: Path, tmp_path: Path) -> None:
    state = Path(shutil.copy(OLD / "autoattack.state.safetensors", tmp_path))
    data = load_images("digits").first(12)
    images, labels = data.float_images(), data.labels
    found = trilemma.attacks.autoattack(
        trilemma.load(run), images, labels, trilemma.Threat("linf", "0.02"), attacks=("apgd-ce",),
        progress=False, state=state, resume=True,
    )  # fmt: skip
    assert found.robust.tolist() == json.loads((OLD / "autoattack.json").read_text())["robust"]
    assert found.work["apgd-ce"].attacked == 1
