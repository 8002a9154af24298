"""``trilemma init``: what is said about a folder of photos, and a recipe that trains on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trilemma.config.recipe import load_config
from trilemma.errors import DataError
from trilemma.training.build import build_data
from trilemma.training.checks import check_run


def photograph(file: Path, seed: int, size: tuple[int, int] = (20, 16), grey: bool = False) -> None:
    shape = size if grey else (*size, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape).astype("u1")).save(file)


@pytest.fixture
def photos(trilemma) -> Path:
    """40 colour images of cats, 10 grey ones of dogs, in the current folder."""
    for index in range(40):
        photograph(Path(f"photos/cat/{index}.png"), index)
    for index in range(10):
        photograph(Path(f"photos/dog/{index}.png"), 100 + index, grey=True)
    return Path("photos")


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """Seconds per image as on a machine of 2 GMAC/s."""
    monkeypatch.setattr("trilemma.training.advise.seconds_per_image", lambda network, macs, shape: macs / 2e9)


def test_the_recipe_trains_on_the_images_and_what_is_said_is_so(trilemma, photos):
    result = trilemma("init", "photos")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "50 images in 2 classes; 40 colour, 10 grey; 16x20 pixels" in lines
    assert "chance: 80.0%, the accuracy of answering 'cat' always" in lines
    assert any(line.startswith("uneven: 40 of 'cat', 10 of 'dog'") for line in lines)
    assert lines[-4:] == [
        "next: trilemma validate photos.yaml",
        "      trilemma train photos.yaml",
        "      trilemma evaluate runs/photos --protocol clean --protocol classes --protocol pgd-20",
        "      trilemma report runs/photos",
    ]
    config = load_config("photos.yaml")
    assert (config.data.root, config.data.size, config.method.name) == ("photos", 16, "pgd-at")
    data = build_data(config)
    check_run(config, data)
    text = Path("photos.yaml").read_text()
    assert f"{len(data.train)} to train on, {len(data.held_out)} held out" in text and "Chance: 80.0%" in text


def test_broken_and_equal_files_are_named(trilemma, photos):
    for index in range(3):
        photograph(Path(f"photos/train/cat/{index}.png"), index)
        photograph(Path(f"photos/train/dog/{index}.png"), 10 + index)
        photograph(Path(f"photos/test/dog/{index}.png"), 20 + index)
    photograph(Path("photos/test/cat/a.png"), 1)
    whole = Path("photos/train/cat/0.png").read_bytes()
    Path("photos/train/cat/0.png").write_bytes(whole[: len(whole) // 2])
    for folder in ("cat", "dog"):
        for file in Path("photos", folder).iterdir():
            file.unlink()
        Path("photos", folder).rmdir()
    result = trilemma("init", "photos", "--out", "mine.yaml", "--method", "standard")
    assert result.exit_code == 0, result.output
    warnings = result.stderr.splitlines()
    assert any(
        "train/cat/0.png: cannot be decoded as an image (image file is truncated" in line for line in warnings
    )
    # the same pixels, encoded alike
    assert any("train/cat/1.png and test/cat/a.png are the same image" in line for line in warnings)
    assert "next: remove or replace the files above that cannot be decoded" in result.stdout
    assert load_config("mine.yaml").method.name == "standard"


@pytest.mark.parametrize("method", ["eb-jdat", "n-fgsm", "trades"])
def test_the_recipe_of_another_method_is_one_that_it_accepts(trilemma, photos, method):
    result = trilemma("init", "photos", "--method", method)
    assert result.exit_code == 0 and result.stderr == "", result.output
    assert load_config("photos.yaml").method.name == method


def test_a_faster_machine_gets_a_larger_network_and_a_slower_one_fewer_epochs(trilemma, photos, monkeypatch):
    chosen = {}
    for name, speed in (("fast", 1e12), ("slow", 1e6)):
        monkeypatch.setattr(
            "trilemma.training.advise.seconds_per_image", lambda network, macs, shape, s=speed: macs / s
        )
        trilemma("init", "photos", "--out", f"{name}.yaml")
        config = load_config(f"{name}.yaml")
        chosen[name] = (config.training.epochs, config.network.model_dump()["depth"])
    assert chosen["fast"][0] == 60 and chosen["slow"][0] == 15


def test_mistakes(mistake, photos):
    assert "no such" in mistake("init", "nowhere") or "does not exist" in mistake("init", "nowhere")
    assert "Did you mean 'pgd-at'" in mistake("init", "photos", "--method", "pgdat")
    Path("photos.yaml").write_text("mine")
    assert "photos.yaml: exists already and is not overwritten" in mistake("init", "photos")
    Path("empty").mkdir()
    assert "empty" in mistake("init", "empty")
    for file in photos.glob("*/*"):
        file.write_bytes(b"no image")
    assert "none of its 50 images can be decoded" in mistake("init", "photos", "--out", "x.yaml")
    assert "device cuda:3: not available" in mistake(
        "init", "photos", "--out", "x.yaml", "--device", "cuda:3"
    )


def test_arrays_are_surveyed_too(trilemma):
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 1)).astype("u1")
    np.savez(
        "digits.npz", x_train=images, y_train=np.arange(60) % 3, x_test=images[:9], y_test=np.arange(9) % 3
    )
    result = trilemma("init", "digits.npz")
    assert result.exit_code == 0, result.output
    assert "69 images in 3 classes; grey; 8x8 pixels" in result.stdout
    assert load_config("digits.yaml").data.size is None


def test_a_source_that_is_no_folder_of_classes_is_refused(trilemma, photos):
    from trilemma.data.survey import survey

    photograph(Path("photos/loose.png"), 0)
    with pytest.raises(DataError, match=r"loose\.png"):
        survey(photos)
