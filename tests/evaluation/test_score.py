"""Energy, class and percentile of each image: of a data set, of files, of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from trilemma.data.sources import load_images
from trilemma.energies import marginal_energy
from trilemma.errors import ConfigError, DataError, ImageError
from trilemma.evaluation.score import energy_percentiles
from trilemma.training.statistics import attach


def test_rows_are_the_classifiers_own_on_the_runs_test_images(finished_run):
    rows = trilemma.score(finished_run, images=30, batch_size=7)
    part = load_images("digits").first(30)
    clf = trilemma.load(finished_run)
    with torch.no_grad():
        logits = clf(part.float_images())
    assert [row["label"] for row in rows] == [clf.class_names[k] for k in part.labels]
    assert [row["class"] for row in rows] == [clf.class_names[k] for k in logits.argmax(1)]
    assert [row["confidence"] for row in rows] == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)
    assert [row["marginal energy"] for row in rows] == pytest.approx(
        marginal_energy(logits).tolist(), abs=1e-4
    )


def test_the_percentile_is_the_share_of_training_images_with_a_lower_energy(toy):
    clf, train = toy.mlp(), toy.image_set(per_class=50)
    attach(clf, train)
    with torch.no_grad():
        energies = marginal_energy(clf(train.float_images())).sort().values
    quantiles = clf.statistics["energy_quantiles"]
    ranks = energy_percentiles(quantiles, energies)
    assert torch.allclose(ranks, torch.linspace(0, 100, len(energies)), atol=0.11)
    outside = energy_percentiles(quantiles, torch.stack([energies[0] - 1, energies[-1] + 1]))
    assert outside.tolist() == [0.0, 100.0]


def test_percentiles_are_those_of_numpy(toy):
    clf, train = toy.mlp(), toy.image_set(per_class=40)
    images = toy.images(50)
    with torch.no_grad():
        training = marginal_energy(clf(train.float_images())).numpy()
        energies = marginal_energy(clf(images)).numpy()
    quantiles = np.quantile(training, np.linspace(0, 1, 1001))
    expected = np.interp(energies, quantiles, np.linspace(0, 100, 1001))
    attach(clf, train)
    rows = trilemma.score(clf, images)
    assert [row["percentile"] for row in rows] == pytest.approx(expected.tolist(), abs=0.02)
    # The share of training images, up to one of them.
    shares = [100 * float((training < energy).mean()) for energy in energies]
    assert [row["percentile"] for row in rows] == pytest.approx(shares, abs=100 / len(train) + 0.1)


def test_rows_do_not_depend_on_the_batch_size(toy):
    clf, images = toy.conv(dropout=0.5), toy.images(7)
    attach(clf, toy.image_set())
    one, many = (trilemma.score(clf, images, batch_size=size) for size in (1, 7))
    for row, other in zip(one, many, strict=True):
        assert row == pytest.approx(other, abs=1e-3)


def test_without_stored_energies_a_line_names_the_option_that_gives_the_percentile(toy, capsys):
    clf, train = toy.mlp(), toy.image_set(per_class=20)
    rows = trilemma.score(clf, toy.images())
    assert [row["percentile"] for row in rows] == [None] * 6
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("percentile: not known") and "add --data NAME" in line and "training_data=" in line
    given = trilemma.score(clf, toy.images(), training_data=train)
    assert capsys.readouterr().err == "" and "energy_quantiles" not in clf.statistics
    attach(clf, train)
    assert given == trilemma.score(clf, toy.images())


def test_training_data_are_read_by_name_and_from_a_folder(finished_run, tmp_path):
    clf = trilemma.load(finished_run)
    image = load_images("digits").first(1).float_images()
    stored = trilemma.score(clf, image)
    del clf.statistics["energy_quantiles"]
    assert trilemma.score(clf, image, training_data="digits") == stored
    # Not arranged by class, of another size and in colour.
    for k in range(3):
        Image.new("RGB", (16, 16), (80 * k,) * 3).save(tmp_path / f"{k}.png")
    (row,) = trilemma.score(clf, image, training_data=tmp_path)
    assert 0 <= row["percentile"] <= 100


def test_files_and_tensors_need_no_labels(finished_run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8)).astype(np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    from_files = trilemma.score(finished_run, files)
    from_memory = trilemma.score(finished_run, torch.from_numpy(pixels)[:, None])
    assert [row["image"] for row in from_files] == [str(file) for file in files]
    assert [row["image"] for row in from_memory] == [0, 1]
    for one, other in zip(from_files, from_memory, strict=True):
        assert "label" not in one
        assert {**one, "image": 0} == pytest.approx({**other, "image": 0})
    assert trilemma.score(finished_run, files[0]) == from_files[:1]


def test_a_plain_network_has_the_classes_of_the_data(toy):
    network = toy.mlp().network
    rows = trilemma.score(network, toy.image_set())
    assert {row["label"] for row in rows} == {"class 0", "class 1", "class 2"}
    with pytest.raises(ConfigError, match="plain network has no data"):
        trilemma.score(network)


def test_predict_takes_what_score_takes(finished_run):
    part = load_images("digits").first(20)
    rows = trilemma.predict(finished_run, part)
    assert [row["class"] for row in rows] == [row["class"] for row in trilemma.score(finished_run, part)]
    assert rows == trilemma.predict(trilemma.load(finished_run), part.float_images(), batch_size=3)


def test_mistakes_are_one_line(finished_run, toy):
    with pytest.raises(ConfigError, match="must be at least 1"):
        trilemma.score(finished_run, images=0)
    with pytest.raises(DataError, match="neither a data set nor a path"):
        trilemma.score(finished_run, "digit")
    with pytest.raises(ImageError, match="takes"):
        trilemma.score(finished_run, torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="of type int"):
        trilemma.predict(3, toy.images())  # type: ignore[arg-type]
