"""Samples with their starts: what is written is what was made, and the figures of both stand side by side."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from trilemma.data.sources import load_splits
from trilemma.errors import ConfigError, UserError
from trilemma.evaluation.samples import as_uint8, draw_samples, generate, stopping_text
from trilemma.runs.read import start_order
from trilemma.runs.records import read_record


def test_files_hold_starts_and_samples_of_every_class(run_copy):
    record = generate(run_copy, per_class=2, steps=3).record
    folder = run_copy / "samples"
    assert read_record(folder / f"{record['name']}.json") == record
    assert (folder / f"{record['name']}.png").is_file()
    assert (folder / f"{record['name']}-dark.png").is_file()
    for suffix in ("chains", "energies", "neighbours", "neighbours-dark"):
        assert (folder / f"{record['name']}-{suffix}.png").is_file()
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


def test_the_record_says_what_stopping_saved(finished_run, monkeypatch):
    """Against a count of the evaluations of the network, without a fast copy, whose comparison costs a few more."""
    monkeypatch.setattr("trilemma.classifier.fast_copy.WORTH_A_COPY", float("inf"))
    clf = trilemma.load(finished_run)
    images = []
    network = clf.network
    network.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    generated = generate(clf, 5, "class-pca", "momentum", "joint", 40, data=load_splits("digits"), stop=True)
    saved = generated.record["stopping"]
    assert 0 < saved["stopped"] == int((generated.steps < 40).sum()) < 50
    assert saved["mean_steps"] == pytest.approx(float(generated.steps.float().mean()), abs=0.01)
    assert saved["forward_passes"] == pytest.approx(2 * sum(images) / 50, abs=0.01)
    assert saved["forward_passes"] < saved["without_stopping"] == 80
    text = (
        f"stopping: {saved['stopped']} of 50 samples stopped early, after {saved['mean_steps']:g} of 40 steps"
    )
    assert stopping_text(generated.record).startswith(text) and text in repr(generated)
    whole = generate(clf, 5, "class-pca", "momentum", "joint", 40, data=load_splits("digits"))
    assert whole.record["stopping"] is None and (whole.steps == 40).all()
    free = generated.steps == 40
    # samples that never stopped are those without stopping, in a smaller batch
    torch.testing.assert_close(generated.images[free], whole.images[free], atol=1e-4, rtol=0)


def test_samples_of_a_class_repel_each_other_in_whole_batches(finished_run, monkeypatch):
    """A batch cuts no class, so the number of classes in a batch changes nothing."""
    clf = trilemma.load(finished_run)
    arguments = (clf, 3, "uniform", "langevin", "joint", 3, 0)
    whole = draw_samples(*arguments, diversity=50.0)
    monkeypatch.setattr("trilemma.evaluation.samples.BATCH_SIZE", 7)
    parts = draw_samples(*arguments, diversity=50.0)
    torch.testing.assert_close(parts.images, whole.images, atol=1e-5, rtol=0)
    assert (draw_samples(*arguments).images - whole.images).abs().max() > 1e-3


def test_a_mixture_has_a_file_name_of_its_own(run_copy):
    record = generate(run_copy, 1, "uniform:0.5,local-pca:k=20:0.5", steps=0).record
    assert record["name"] == "uniform-0.5+local-pca-k20-0.5_momentum_joint_0"
    assert (run_copy / "samples" / f"{record['name']}.png").is_file()
    assert start_order(record) == start_order({"start": "local-pca"}) > start_order({"start": "class-pca"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_class": 0}, "per_class=0; must be at least 1"),
        ({"steps": -1}, "steps=-1; must be at least 0"),
        ({"preset": "derr"}, "unknown preset 'derr'. Did you mean 'der'"),
        ({"start": "replay-buffer"}, "needs the chains of training, and .* has none"),
        ({"start": "uniform:0.5,data:0.6"}, "sum to 1.1; they must sum to 1"),
    ],
)
def test_wrong_settings_of_a_chain_are_one_line(finished_run, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        generate(finished_run, **{"per_class": 1, "steps": 1, "out": tmp_path} | arguments)
    assert "\n" not in str(caught.value)


def test_the_recorded_chains_are_those_of_the_samples(finished_run, monkeypatch):
    # Several batches, and chains that leave theirs early.
    monkeypatch.setattr("trilemma.evaluation.samples.BATCH_SIZE", 12)
    clf = trilemma.load(finished_run)
    found = draw_samples(clf, 3, "class-pca", "momentum", "reference", 30, seed=1, stop=True)
    chains = found.chains
    assert chains.steps[0] == 0 and chains.steps[-1] == 30 and len(chains.steps) <= 12
    # The first two chains of each of the ten classes, at their start and at their end.
    first = torch.tensor([3 * k + i for k in range(10) for i in range(2)])
    assert torch.equal(chains.labels, found.labels[first])
    assert torch.equal(chains.images[0], found.starts[first])
    assert torch.equal(chains.images[-1], found.images[first])
    # A chain that stopped before a recorded step does not move after it.
    taken = found.steps[first]
    assert (taken < 30).any()
    for place, step in enumerate(chains.steps):
        still = taken <= step
        assert torch.equal(chains.images[place][still], found.images[first][still])
    # Its steps are those of a shorter walk with the same random numbers.
    shorter = draw_samples(clf, 3, "class-pca", "momentum", "reference", chains.steps[2], seed=1, stop=True)
    torch.testing.assert_close(chains.images[2], shorter.images[first], atol=1e-5, rtol=0)
    energies = chains.joint_energies(clf)
    with torch.no_grad():
        expected = -clf.eval()(found.images[first]).gather(1, chains.labels[:, None])[:, 0]
    torch.testing.assert_close(energies[-1], expected)
