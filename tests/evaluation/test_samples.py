"""Samples with their starts: what is written is what was made, and the figures of both stand side by side."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from trilemma.data.sources import load_splits
from trilemma.errors import ConfigError
from trilemma.evaluation.samples import as_uint8, draw_samples, generate


def test_files_hold_starts_and_samples_of_every_class(run_copy):
    record = generate(run_copy, per_class=2, steps=3).record
    folder = run_copy / "samples"
    assert json.loads((folder / f"{record['name']}.json").read_text()) == record
    assert (folder / f"{record['name']}.png").is_file()
    assert (folder / f"{record['name']}-dark.png").is_file()
    with np.load(folder / f"{record['name']}.npz") as arrays:
        assert arrays["samples"].shape == arrays["starts"].shape == (20, 8, 8, 1)
        assert arrays["labels"].tolist() == sorted(list(range(10)) * 2)
        single = np.asarray(Image.open(folder / record["name"] / "7-0001.png"))
        assert np.array_equal(single, arrays["samples"][15, :, :, 0])


def test_zero_steps_give_the_starts_and_the_walk_begins_at_them(finished_run):
    clf = trilemma.load(finished_run)
    still = draw_samples(clf, 3, "class-pca", "momentum", "joint", 0, seed=4)
    assert torch.equal(still.starts, still.images)
    moved = draw_samples(clf, 3, "class-pca", "momentum", "joint", 5, seed=4)
    assert torch.equal(moved.starts, still.starts)
    assert not torch.equal(moved.images, moved.starts)
    # one step of the sampler from the shown starts moves no pixel far
    near = draw_samples(clf, 3, "class-pca", "langevin", "joint", 1, seed=4, step_size=1e-6, noise_std=0.0)
    assert (near.images - near.starts).abs().max() < 1e-3


def test_figures_stand_beside_those_of_starts_and_real_images(finished_run):
    clf, data = trilemma.load(finished_run), load_splits("digits")
    namer = copy.deepcopy(clf)
    with torch.no_grad():
        next(namer.parameters()).add_(0.1)
    record = generate(clf, 2, "uniform", steps=2, namer=namer, data=data).record
    assert set(record["figures"]) == {"start", "sample", "real"}
    assert record["figures"]["real"]["distance"] == pytest.approx(1.06, abs=0.03)  # METHODS, section 3
    assert record["figures"]["start"]["distance"] > 2


def test_a_classifier_does_not_judge_its_own_samples(finished_run):
    with pytest.raises(ConfigError, match="trained independently"):
        generate(trilemma.load(finished_run), 1, steps=0, namer=finished_run)


def test_rounding_to_bytes_and_back_is_exact():
    values = torch.arange(256).view(1, 1, 16, 16)
    assert (as_uint8(values / 255).reshape(-1) == np.arange(256)).all()
