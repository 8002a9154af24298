"""``trilemma predict``: image files become what the classifier takes, by the rules its help states."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma as package
from trilemma.energies import marginal_energy
from trilemma.evaluation.predict import read_images


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


def test_a_file_that_is_no_image_is_named(mistake, run_folder, tmp_path, picture):
    (tmp_path / "notes.png").write_text("no pixels here")
    line = mistake("predict", run_folder, picture(np.zeros((8, 8))), tmp_path / "notes.png")
    reason = "Pillow does not know its format"
    assert line == f"{tmp_path / 'notes.png'}: cannot be decoded as an image ({reason}); replace or remove it"


def test_a_truncated_image_is_named(mistake, run_folder, picture):
    path = picture(np.random.default_rng(0).integers(0, 256, (64, 64)))
    path.write_bytes(path.read_bytes()[:-500])
    assert mistake("predict", run_folder, path).startswith(f"{path}: cannot be decoded as an image")


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
