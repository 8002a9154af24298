"""``trilemma predict``: image files become what the classifier takes, by the rules its help states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma as package
from trilemma.data import load_splits
from trilemma.energies import marginal_energy
from trilemma.evaluation.predict import pixels_of


def read_images(paths, shape):
    """Pixels of image files, float32 ``[N, C, H, W]`` in [0, 1]."""
    pixels = [pixels_of(path.read_bytes(), shape, str(path)) for path in paths]
    return torch.from_numpy(np.stack(pixels)).float() / 255


@pytest.fixture
def picture(tmp_path):
    """Saves pixels ``[H, W]`` or ``[H, W, 3]`` as PNG and returns the path."""

    def save(pixels, name="picture.png"):
        Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(tmp_path / name)
        return tmp_path / name

    return save


def test_rows_are_what_the_classifier_says_of_the_pixels(trilemma, run_folder, picture):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8))
    paths = [picture(image, f"{k}.png") for k, image in enumerate(pixels)]
    rows = json.loads(trilemma("predict", run_folder, *paths, "--json").stdout)
    with torch.no_grad():
        logits = package.load(run_folder)(torch.from_numpy(pixels)[:, None].float() / 255)
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert [row["class"] for row in rows] == [str(k) for k in logits.argmax(1).tolist()]
    assert [row["confidence"] for row in rows] == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)
    assert [row["marginal energy"] for row in rows] == pytest.approx(
        marginal_energy(logits).tolist(), abs=1e-5
    )


def test_the_table_has_a_line_per_image(trilemma, run_folder, picture):
    path = picture(np.zeros((8, 8)))
    assert sum(str(path) in line for line in trilemma("predict", run_folder, path).stdout.splitlines()) == 1


def test_colour_becomes_luminance_for_a_grey_classifier(picture):
    path = picture(np.full((8, 8, 3), (200, 100, 50)))
    expected = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255
    assert read_images([path], (1, 8, 8)).unique().tolist() == pytest.approx([expected])


def test_grey_is_kept_exactly_and_fills_three_channels(picture):
    pixels = np.arange(64).reshape(8, 8)
    grey, colour = (read_images([picture(pixels)], (channels, 8, 8)) for channels in (1, 3))
    assert torch.equal(grey[0, 0], torch.from_numpy(pixels).float() / 255)
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


def test_the_centre_is_cropped_and_shrunk_by_averaging(picture):
    pixels = np.zeros((16, 32))
    pixels[:, 8:24] = 80  # the central square
    assert read_images([picture(pixels)], (1, 8, 8)).mul(255).unique().tolist() == [80.0]


@pytest.mark.parametrize("command", ["predict", "score"])
def test_a_file_that_cannot_be_read_is_skipped_with_a_line_and_counted(
    trilemma, run_folder, tmp_path, picture, command
):
    (tmp_path / "notes.png").write_text("no pixels here")
    cut = picture(np.random.default_rng(0).integers(0, 256, (64, 64)), "cut.png")
    cut.write_bytes(cut.read_bytes()[:-500])
    result = trilemma(command, run_folder, picture(np.zeros((8, 8))), "notes.png", cut, "--json")
    assert result.exit_code == 0
    assert [row["image"] for row in json.loads(result.stdout)] == [str(tmp_path / "picture.png")]
    first, second, last = result.stderr.splitlines()
    reason = "Pillow does not know its format"
    assert first == f"skipped: notes.png: cannot be decoded as an image ({reason}); replace or remove it"
    assert second.startswith(f"skipped: {cut}: cannot be decoded as an image")
    assert last == "skipped 2 of 3 images, which cannot be read"


@pytest.mark.parametrize("command", ["predict", "score"])
def test_a_path_with_nothing_to_read_is_skipped_beside_others(
    trilemma, run_folder, tmp_path, picture, command
):
    (tmp_path / "empty").mkdir()
    path = picture(np.zeros((8, 8)))
    result = trilemma(command, "missing.png", "empty", path, "--model", run_folder, "--json")
    assert result.exit_code == 0
    assert [row["image"] for row in json.loads(result.stdout)] == [str(path)]
    first, second, last = result.stderr.splitlines()
    assert first == "skipped: missing.png: no such image file" and second.startswith("skipped: empty: ")
    assert last == "skipped 2 of 3 images, which cannot be read"


@pytest.mark.parametrize("command", ["predict", "score"])
def test_images_of_which_none_can_be_read_are_a_mistake(mistake, run_folder, tmp_path, command):
    (tmp_path / "notes.png").write_text("no pixels here")
    assert mistake(command, run_folder, "notes.png").startswith("none of the 1 images can be read")


def test_an_archive_gives_the_rows_of_its_folder(trilemma, run_folder, tmp_path, picture):
    (tmp_path / "scans" / "day").mkdir(parents=True)
    for k in range(3):
        picture(np.full((8, 8), 80 * k), f"scans/day/{k}.png")
    archive = Path(shutil.make_archive(str(tmp_path / "scans"), "zip", tmp_path, "scans"))
    packed, plain = (
        json.loads(trilemma("predict", run_folder, source, "--json").stdout) for source in (archive, "scans")
    )
    assert [row["image"] for row in packed] == [f"{archive}:scans/day/{k}.png" for k in range(3)]
    assert [{**row, "image": ""} for row in packed] == [{**row, "image": ""} for row in plain]


def test_score_gives_the_rank_of_each_energy_among_the_training_images(
    trilemma, run_folder, picture, tmp_path
):
    paths = [picture(np.full((8, 8), value), f"{value}.png") for value in (0, 255)]
    rows = json.loads(trilemma("score", run_folder, *paths, "--format", "json").stdout)
    training = load_splits("digits").train
    clf = package.load(run_folder)
    with torch.no_grad():
        energies = marginal_energy(clf(training.float_images()))
    for row in rows:
        share = 100 * (energies < row["marginal energy"]).float().mean().item()
        assert row["percentile"] == pytest.approx(share, abs=0.2)
    lines = trilemma("score", run_folder, *paths, "--format", "csv").stdout.splitlines()
    assert lines[0] == "image,class,confidence,marginal energy,percentile" and len(lines) == 3
    # A file of an earlier version stores no energies: those of the run's own training images are used.
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    del clf.statistics["energy_quantiles"]
    clf.save(file)
    assert json.loads(trilemma("score", run_folder, *paths, "--json").stdout) == rows
    alone = trilemma("score", file, *paths, "--json")
    assert [row["percentile"] for row in json.loads(alone.stdout)] == [None, None]
    assert "add --data NAME" in alone.stderr
    assert json.loads(trilemma("score", *paths, "--model", file, "--data", "digits", "--json").stdout) == rows


def test_a_folder_gives_its_image_files_at_any_depth_sorted_by_path(
    trilemma, mistake, run_folder, tmp_path, picture
):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    assert mistake("predict", run_folder, folder).startswith(f"{folder}: holds no image file")
    paths = [
        picture(np.zeros((8, 8)), name)
        for name in ("pictures/b.png", "pictures/a.PNG", "pictures/more/c.png")
    ]
    rows = json.loads(trilemma("predict", run_folder, folder, "--json").stdout)
    assert [row["image"] for row in rows] == [str(path) for path in (paths[1], paths[0], paths[2])]
