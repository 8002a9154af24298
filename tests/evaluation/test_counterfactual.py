"""``trilemma.counterfactual``: numbers are those of the classifier, and files hold what is returned."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from trilemma.data.sources import load_images
from trilemma.energies import joint_energy, marginal_energy
from trilemma.errors import ConfigError, DataError, ImageError, UnknownNameError
from trilemma.figures import DARK


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").first(6).float_images()


def predicted(clf, images):
    with torch.no_grad():
        return clf(images).argmax(1)


@pytest.mark.parametrize("budget", [None, "1.5"])
def test_numbers_are_those_of_the_classifier_along_the_way(toy, budget):
    clf = toy.mlp(class_names=("cat", "dog", "owl"))
    images = toy.images(8)
    result = trilemma.counterfactual(clf, images, "owl", budget, steps=12)
    labels = predicted(clf, images)
    assert torch.equal(result.originals, images) and torch.equal(result.original_labels, labels)
    already = labels == 2
    assert already.any() and not already.all()
    assert torch.equal(result.images[already], images[already])
    assert result.distances[already].abs().max() == 0 and result.success[already].all()
    expected = (result.images - images).flatten(1).double().norm(dim=1)
    assert result.distances.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert torch.equal(result.success, predicted(clf, result.images) == 2)
    assert ((result.images >= 0) & (result.images <= 1)).all()
    if budget is not None:
        assert (result.distances <= 1.5 + 1e-5).all()
    for k, way in enumerate(result.trajectories):
        for image, place in ((images[k : k + 1], 0), (result.images[k : k + 1], -1)):
            with torch.no_grad():
                logits = clf(image)
            values = {key: column[place] for key, column in way.values.items()}
            assert values["marginal energy"] == pytest.approx(float(marginal_energy(logits)), abs=1e-4)
            assert values["target energy"] == pytest.approx(
                float(joint_energy(logits, torch.tensor([2]))), abs=1e-4
            )
            original = joint_energy(logits, labels[k : k + 1])
            assert values["original energy"] == pytest.approx(float(original), abs=1e-4)
            assert values["target confidence"] == pytest.approx(float(logits.softmax(1)[0, 2]), abs=1e-4)
        assert way.values["distance"][0] == 0
        assert way.values["distance"][-1] == pytest.approx(float(result.distances[k]), abs=1e-6)
        assert len(way.steps) == len(way.values["distance"]) and (len(way.steps) == 1) == bool(already[k])


def test_a_budget_above_every_least_distance_suffices_for_every_image(toy):
    clf, images = toy.mlp(), toy.images(8)
    least = trilemma.counterfactual(clf, images, 2, steps=20, tolerance=0.1)
    assert least.success.all()
    budget = float(least.distances.max()) * 1.01
    result = trilemma.counterfactual(clf, images, 2, budget, steps=20, frames=3)
    assert result.success.all() and (result.distances <= budget + 1e-5).all()
    for way in result.trajectories:
        assert way.values["distance"][0] == 0 and way.steps == list(range(len(way.steps)))
        assert way.frame_steps[0] in (0, way.steps[-1]) and way.frame_steps[-1] == way.steps[-1]


def test_images_do_not_depend_on_the_batch_size(toy):
    clf, images = toy.mlp(), toy.images(5)
    one, many = (trilemma.counterfactual(clf, images, 1, 1.0, steps=5, batch_size=size) for size in (1, 5))
    assert torch.allclose(one.images, many.images, atol=1e-5)
    assert [row["image"] for row in one.rows] == [row["image"] for row in many.rows] == list(range(5))


def test_each_image_can_have_its_own_target_and_a_name_precedes_a_number(toy):
    clf = toy.mlp(class_names=("2", "0", "1"))
    result = trilemma.counterfactual(clf, toy.images(3), "0", 1.0, steps=2)
    assert result.target_labels.tolist() == [1, 1, 1]
    result = trilemma.counterfactual(clf, toy.images(3), [2, 0, 1], trilemma.Threat("linf", "8/255"), steps=2)
    assert result.target_labels.tolist() == [2, 0, 1] and result.settings["norm"] == "linf"
    assert (result.distances <= 8 / 255 + 1e-6).all()


def test_the_classifier_is_left_as_it_was(toy):
    clf = toy.conv(dropout=0.5)
    state = {name: value.clone() for name, value in clf.state_dict().items()}
    trilemma.counterfactual(clf, toy.images(3), 0, steps=2)
    assert clf.training and all(parameter.requires_grad for parameter in clf.parameters())
    assert all(torch.equal(value, state[name]) for name, value in clf.state_dict().items())


def test_files_hold_what_is_returned(finished_run, digits, tmp_path):
    result = trilemma.counterfactual(finished_run, digits[:2], 3, 0.5, steps=4, frames=4)
    path = result.save(tmp_path)
    assert path == tmp_path / "to-3_l2_0.5.json"
    record = json.loads(path.read_text())
    assert record["budget"] == "0.5" and record["norm"] == "l2" and record["steps"] == 4
    assert [row["distance"] for row in record["images"]] == result.distances.tolist()
    assert (
        record["images"][1]["trajectory"]["marginal energy"]
        == result.trajectories[1].values["marginal energy"]
    )
    stored = np.load(tmp_path / "to-3_l2_0.5.npz")
    assert np.array_equal(stored["images"], result.images.numpy())
    folder = tmp_path / "to-3_l2_0.5"
    pixels = np.asarray(Image.open(folder / "0001-1-result.png"))
    assert np.abs(pixels / 255 - result.images[1, 0].numpy()).max() <= 0.5 / 255 + 1e-6
    with Image.open(folder / "0000-0.webp") as animation:
        assert animation.n_frames == len(result.trajectories[0].frames)  # type: ignore[attr-defined]
    assert (tmp_path / "to-3_l2_0.5.png").is_file() and (tmp_path / "to-3_l2_0.5-dark.png").is_file()
    assert (folder / "0000-0.png").is_file()


def test_figures_show_the_images_and_the_scale_of_the_difference(toy):
    clf = toy.mlp(shape=(3, 6, 6))
    result = trilemma.counterfactual(clf, toy.images(3, (3, 6, 6)), 0, 0.7, steps=3)
    figure = result.figure(0, DARK)
    scale = float((result.images[0] - result.originals[0]).abs().max())
    assert figure.axes[2].get_title("left") == f"difference, \u00b1{scale:.2g}"
    shown = figure.axes[1].get_images()[0].get_array()
    assert shown is not None and np.allclose(shown, result.images[0].permute(1, 2, 0).numpy(), atol=1e-6)
    for index in range(3):
        buffer = io.BytesIO()
        result.figure(index).savefig(buffer, dpi=40)
    assert len(result.figure().axes) == 3
    assert "of 3 images are of the target class" in repr(result)


MISTAKES = {
    "class": ({"target": "cat"}, UnknownNameError, "target 'cat': no class of this classifier"),
    "number": ({"target": 10}, UnknownNameError, "Give a number from 0 to 9"),
    "negative number": ({"target": "-1"}, UnknownNameError, "target '-1'"),
    "targets": ({"target": [1, 2]}, ImageError, "target: torch.int64 of shape"),
    "no budget": ({"budget": 0}, ConfigError, "budget: 0 must be above 0"),
    "negative budget": ({"budget": "-1"}, ConfigError, "budget: '-1' must be above 0"),
    "budget": ({"budget": "8/256/2"}, ConfigError, "budget: '8/256/2' is not a number"),
    "norm": ({"norm": "l1"}, ConfigError, "norm: 'l1' is unknown"),
    "wide": ({"norm": "linf", "budget": 8}, ConfigError, "more than the whole range"),
    "energy": ({"energy": "reference"}, ConfigError, "energy='reference' is unknown"),
    "steps": ({"steps": -3}, ConfigError, "steps=-3; must be at least 1"),
    "tolerance": ({"tolerance": 0}, ConfigError, "tolerance=0; must be above 0"),
    "both": ({"tolerance": 0.1, "budget": 1}, ConfigError, "tolerance is for the least distance"),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line(finished_run, digits, arguments, kind, message):
    with pytest.raises(kind) as error:
        trilemma.counterfactual(finished_run, digits, **{"target": 3, **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_images_of_another_size_are_refused_or_resized(finished_run, tmp_path):
    Image.new("L", (16, 16), 90).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match="16 x 16 pixels, but the classifier takes 8 x 8; resize it first"):
        trilemma.counterfactual(finished_run, tmp_path / "wide.png", 3)
    result = trilemma.counterfactual(finished_run, tmp_path / "wide.png", 3, 0.1, steps=1, resize=True)
    assert result.originals.shape == (1, 1, 8, 8)
    with pytest.raises(ImageError, match="this classifier takes"):
        trilemma.counterfactual(finished_run, torch.zeros(1, 1, 9, 9), 3)
    with pytest.raises(ConfigError, match="no frames were kept"):
        result.animation(0)
