"""Saved adversarial images: inside the ball, of the verdicts that are reported, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import trilemma
from trilemma.errors import ConfigError, RunError
from trilemma.evaluation.evaluate import evaluate_run

THREAT = trilemma.Threat("linf", 0.2)


@pytest.mark.parametrize(
    "name", ["pgd-20", "pgd-50-10", "attack:apgd-ce", "autoattack-few-classes", "screen"]
)
def test_saved_images_are_in_the_ball_and_give_the_verdicts(name, clf, grey, tmp_path):
    file = tmp_path / "new" / "images.npz"
    row = trilemma.evaluate(clf, grey, ["clean", name], THREAT, save_adversarial=file)[name]
    with np.load(file) as saved:
        arrays = {key: saved[key] for key in saved}
    images, clean = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["clean"])
    assert images.dtype == torch.float32 and torch.equal(clean, grey[0])
    assert (images - clean).abs().max() <= 0.2 + 1e-6 and images.min() >= 0 and images.max() <= 1
    with torch.no_grad():
        predictions = clf(images).argmax(1)
    np.testing.assert_array_equal(arrays["predictions"], predictions)
    np.testing.assert_array_equal(arrays["correct"], arrays["predictions"] == arrays["labels"])
    assert arrays["correct"].mean() == row["value"] == 0.4
    assert (str(arrays["protocol"]), str(arrays["norm"]), str(arrays["radius"])) == (name, "linf", "0.2")
    about = json.loads(str(arrays["about"]))
    assert about == {key: row[key] for key in about} and {"seed", "data", "version"} <= set(about)


@pytest.mark.parametrize(
    ("protocols", "file", "error", "message"),
    [
        (["clean"], "a.npz", ConfigError, "needs one protocol that attacks"),
        (["pgd-20", "screen"], "a.npz", ConfigError, "got pgd-20, screen"),
        (["ece-pgd-20"], "a.npz", ConfigError, "got none"),
        (["pgd-20"], "a.npy", ConfigError, "must end in .npz"),
        (["pgd-20"], "there.npz", RunError, "already exists; refusing to overwrite"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_any_attack(
    clf, grey, tmp_path, protocols, file, error, message
):
    (tmp_path / "there.npz").write_text("precious")
    with pytest.raises(error, match=message):
        trilemma.evaluate(clf, grey, protocols, THREAT, save_adversarial=tmp_path / file)
    assert (tmp_path / "there.npz").read_text() == "precious"


def test_one_file_is_of_one_radius(clf, grey, tmp_path):
    with pytest.raises(ConfigError, match="pgd-20 with 2 radii"):
        trilemma.evaluate(clf, grey, ["pgd-20"], [0.1, 0.2], save_adversarial=tmp_path / "a.npz")


def test_images_of_an_attack_outside_of_the_ball_are_not_saved(clf, grey, tmp_path, monkeypatch):
    from trilemma.evaluation import adversarial

    monkeypatch.setattr(adversarial, "count_outside", lambda *rest: 3)
    with pytest.raises(RuntimeError, match=r"3 saved images lie outside linf 0\.2"):
        trilemma.evaluate(clf, grey, ["pgd-20"], THREAT, save_adversarial=tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def test_several_radii_have_a_row_each_and_one_clean_row(clf, grey):
    rows = trilemma.evaluate(clf, grey, ["clean", "pgd-20"], ["0.1", 0.2, trilemma.Threat("linf", "1/5")])
    # Eight of ten are right; the border at 0.5 takes two images per 0.1 (0.45 and 0.55, then 0.35 and 0.65).
    assert {name: row["value"] for name, row in rows.items()} == {
        "clean": 0.8, "pgd-20@0.1": 0.6, "pgd-20@0.2": 0.4
    }  # fmt: skip
    norms = trilemma.evaluate(clf, grey, ["pgd-20"], [trilemma.Threat("l2", 0.4), THREAT])
    assert list(norms) == ["pgd-20@l2 0.4", "pgd-20@linf 0.2"]


def test_radii_of_a_run_are_stored_beside_its_headline(run_copy: Path):
    evaluate_run(run_copy, ["pgd-20"], threat=["0.1", "0.2"], images=20, lint=False)
    names = {file.stem for file in (run_copy / "evaluation").glob("*.json")}
    assert names == {"pgd-20", "pgd-20@digits-test@linf-0.1"}


def test_a_resumed_sweep_does_not_mix_radii(clf, grey, tmp_path):
    options = {"images": 10, "state": tmp_path}
    first = trilemma.evaluate(clf, grey, ["autoattack-few-classes"], [0.1, 0.2], **options)
    assert len(list(tmp_path.glob("*.state.safetensors"))) == 2
    again = trilemma.evaluate(clf, grey, ["autoattack-few-classes"], [0.1, 0.2], resume=True, **options)
    assert [row["value"] for row in again.values()] == [row["value"] for row in first.values()] == [0.6, 0.4]
