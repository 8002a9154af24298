"""Sets of samples: read as stored, judged beside starts and real images, in rows that say what they are."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from trilemma.config.registry import PROTOCOLS
from trilemma.data.image_set import ImageSet, Splits
from trilemma.errors import ConfigError, DataError
from trilemma.evaluation.protocols.generation import (
    SampleSet,
    classifier_extractor,
    load_extractor,
    measure_samples,
    read_samples,
)
from trilemma.evaluation.samples import generate
from trilemma.metrics.frechet import Extractor, frechet_distance, moments, penultimate


@pytest.fixture
def splits(toy) -> Splits:
    """60 training, 15 held-out and 30 test images of three classes."""
    sets = [toy.image_set(per_class=n) for n in (20, 5, 10)]
    # The sets begin with the same images; those of the test set are mirrored.
    sets[2] = dataclasses.replace(sets[2], images=sets[2].images.flip(3))
    names = ("train", "held-out", "test")
    train, held_out, test = (
        ImageSet(s.images, s.labels, s.class_names, "toy", n) for s, n in zip(sets, names, strict=True)
    )
    return Splits(train, held_out, test)


def test_a_row_carries_its_card(toy, splits):
    samples = SampleSet(
        "mine", splits.train.images[:24], origin="replay-buffer", checkpoint={"method": "jem"}
    )
    row = measure_samples(samples, splits, penultimate(toy.mlp(seed=4), "toy"))
    assert row["protocol"] == "FD-toy:mine:24-replay-buffer:toy-train-60"
    assert (row["quantity"], row["better"], row["count"], row["seed"]) == ("FD-toy", "lower", 24, 0)
    assert (row["lower"], row["upper"], row["threat"]) == (None, None, None)
    assert row["data"] == {
        "name": "toy", "split": "train", "images": "all 60",
        "extractor": f"toy {row['facts']['extractor']['weights']}",
    }  # fmt: skip
    assert row["checkpoint"] == {"method": "jem"}
    clean = trilemma.evaluate(toy.mlp(), (splits.test.images, splits.test.labels), ["clean"])["clean"]
    # These keys are about a classifier and its labels.
    assert set(row) == set(clean) - {"lint", "chance", "parameters"}
    assert row["facts"]["samples"]["filtered"] == "none"
    assert list(row["facts"]["sets"]) == ["sample", "real"]
    assert list(row["also"])[:2] == ["KD-toy", "CS-toy"] and "of real" in row["also"]
    json.dumps(row)


def test_the_distance_is_that_of_the_library_of_metrics(toy, splits):
    extractor = penultimate(toy.mlp(), "toy")
    row = measure_samples(SampleSet("s", splits.test.images), splits, extractor)
    test, train = (moments(extractor.features(part.images / 255)) for part in (splits.test, splits.train))
    assert row["value"] == pytest.approx(frechet_distance(test, train), rel=1e-9)
    # the samples are the real test images here, so that both rows of the table are the same
    sets = row["facts"]["sets"]
    assert sets["sample"]["frechet"] == pytest.approx(sets["real"]["frechet"], rel=1e-9)


def test_every_sample_counts_and_a_worse_set_is_farther(toy, splits):
    extractor = Extractor("pixels", lambda images: images.flatten(1))
    noise = torch.full((30, 1, 4, 4), 255, dtype=torch.uint8)
    good = measure_samples(SampleSet("g", splits.test.images), splits, extractor)
    bad = measure_samples(SampleSet("b", torch.cat([splits.test.images, noise])), splits, extractor)
    assert bad["count"] == 60 and bad["value"] > good["value"]
    assert bad["also"]["precision"] < good["also"]["precision"]


def test_two_extractors_of_one_name_are_told_apart(toy, splits):
    rows = [
        measure_samples(SampleSet("s", splits.test.images), splits, penultimate(toy.mlp(seed=s), "toy"))
        for s in (0, 0, 1)
    ]
    assert rows[0]["data"] == rows[1]["data"] != rows[2]["data"]


def test_training_images_as_samples_are_memorised_and_test_images_are_not(toy, splits):
    extractor = Extractor("pixels", lambda images: images.flatten(1))
    row = measure_samples(
        SampleSet("s", splits.train.images[:20], splits.test.images[:20]), splits, extractor
    )
    assert (row["also"]["memorisation ratio"], row["also"]["near copies"]) == (
        pytest.approx(0.0, abs=1e-6),
        1.0,
    )
    sets = row["facts"]["sets"]
    assert sets["real"]["distance_ratio"] == 1.0 and sets["real"]["near_copies"] <= 0.05
    assert sets["start"]["distance_ratio"] > 0.5 and sets["sample"]["distance"] < 1e-6


def test_each_draw_is_measured_by_itself_and_the_interval_is_of_their_mean(toy, splits):
    """Sample i belongs to draw i mod R."""
    extractor = Extractor("pixels", lambda images: images.flatten(1))
    images, starts = splits.train.images.roll(1, 3)[:50], splits.train.images[:50]
    row = measure_samples(SampleSet("s", images, starts, "fresh"), splits, extractor, draws=5)
    assert row["protocol"] == "FD-pixels:s:5x10-fresh:toy-train-60" and row["count"] == 50
    alone = [measure_samples(SampleSet("s", images[k::5]), splits, extractor) for k in range(5)]
    sets = row["facts"]["sets"]
    assert sets["sample"]["by_draw"]["frechet"] == pytest.approx([one["value"] for one in alone])
    recalls = [one["also"]["recall"] for one in alone]
    assert row["also"]["recall"] == pytest.approx(sum(recalls) / 5)
    assert (row["lower"], row["upper"]) == sets["sample"]["intervals"]["frechet"]
    assert row["lower"] < row["value"] < row["upper"]
    assert sets["sample"]["count"] == sets["start"]["count"] == sets["real"]["count"] == 10
    assert "intervals" in sets["start"] and "intervals" not in sets["real"]
    assert row["facts"]["draws"]["count"] == 5 and "bootstrap" in row["facts"]["draws"]["interval"]
    again = measure_samples(SampleSet("s", images, starts, "fresh"), splits, extractor, draws=5)
    assert {**again, "seconds": 0} == {**row, "seconds": 0}
    json.dumps(row)


def test_a_smaller_reference_is_named_and_near_copies_are_sought_among_all_images(toy, splits):
    extractor = Extractor("pixels", lambda images: images.flatten(1))
    row = measure_samples(SampleSet("s", splits.train.images[:20]), splits, extractor, reference=15)
    assert row["protocol"] == "FD-pixels:s:20-origin-unstated:toy-train-15"
    assert row["data"]["images"] == "first 15 of 60, stratified order"
    assert row["facts"]["sets"]["sample"]["reference_count"] == 15 and row["also"]["near copies"] == 1.0
    everything = measure_samples(SampleSet("s", splits.train.images[:20]), splits, extractor, reference=99)
    assert everything["data"]["images"] == "all 60"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 4}, "draws: 4; an interval needs at least 5 draws"),
        ({"draws": 0}, "draws: 0"),
        ({"draws": 7}, "24 samples cannot be divided into 7 draws"),
        ({"draws": 24}, "24 samples for 24 draws; a distance between sets needs at least 2"),
        ({"reference": 1}, "reference: 1; must be at least 2"),
    ],
)
def test_draws_that_give_no_interval_get_one_line(toy, splits, settings, message):
    samples = SampleSet("mine", splits.train.images[:24])
    with pytest.raises(ConfigError, match=message) as caught:
        measure_samples(samples, splits, penultimate(toy.mlp(), "toy"), **settings)
    assert "\n" not in str(caught.value)


def test_mistakes_get_one_line(toy, splits):
    extractor = penultimate(toy.mlp(), "toy")
    with pytest.raises(ConfigError, match="at least 2"):
        measure_samples(SampleSet("one", splits.test.images[:1]), splits, extractor)
    with pytest.raises(DataError, match="wide: samples are 1x4x5"):
        measure_samples(SampleSet("wide", torch.zeros(9, 1, 4, 5, dtype=torch.uint8)), splits, extractor)
    with pytest.raises(ConfigError, match="--samples DIR"):
        trilemma.evaluate(toy.mlp(), (splits.test.images, splits.test.labels), ["generation"])
    assert PROTOCOLS.get("generation").quantity.better == "lower"


# --- Reading --------------------------------------------------------------------------------------------


def test_what_generate_wrote_is_read_with_its_starts_by_either_name(run_copy):
    record = generate(run_copy, per_class=2, steps=2, start="uniform", seed=5).record
    found = [read_samples(run_copy / "samples" / f"{record['name']}{end}") for end in (".npz", "")]
    for samples in found:
        assert (samples.name, samples.origin, samples.seed) == (record["name"], "fresh", 5)
        assert samples.checkpoint == record["checkpoint"]
        assert samples.starts is not None and samples.starts.shape == samples.images.shape == (20, 1, 8, 8)
        assert samples.images.dtype == torch.uint8
    assert torch.equal(found[0].images, found[1].images)


def test_a_folder_and_an_archive_of_others_are_read_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "set" / ("deeper" if k % 2 else "") / f"{k}.png")
    np.savez(tmp_path / "adm.npz", arr_0=pixels)
    folder, archive = read_samples(tmp_path / "set"), read_samples(tmp_path / "adm.npz", "replay-buffer")
    assert (folder.name, folder.origin, folder.starts) == ("set", "origin-unstated", None)
    assert (archive.name, archive.origin) == ("adm", "replay-buffer")
    in_order = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert torch.equal(archive.images, in_order)
    assert sorted(image.sum() for image in folder.images.numpy()) == sorted(i.sum() for i in in_order.numpy())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such samples"),
        (lambda p: p.mkdir(), "holds no image file"),
        (lambda p: np.savez(f"{p}.npz", images=np.zeros((2, 4, 4, 1), np.uint8)), "has no array 'samples'"),
        (lambda p: np.savez(f"{p}.npz", samples=np.zeros((2, 4, 4, 1))), "uint8"),
        (lambda p: p.with_name("s.npz").write_text("no archive"), "cannot be read as an .npz file"),
    ],
)
def test_what_holds_no_samples_is_one_line(make, message, tmp_path):
    make(tmp_path / "s")
    with pytest.raises(DataError, match=message) as caught:
        read_samples(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_images_of_two_sizes_are_not_made_alike_in_silence(tmp_path):
    for side in (4, 5):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / f"{side}.png")
    with pytest.raises(DataError, match="different form"):
        read_samples(tmp_path)


def test_an_extractor_is_called_by_method_and_data(finished_run, toy):
    extractor, clf = load_extractor(str(finished_run))
    assert clf is not None and extractor.name == "pgd-at-digits" and not extractor.inception
    assert classifier_extractor(toy.mlp(), "fallback").name == "fallback"
