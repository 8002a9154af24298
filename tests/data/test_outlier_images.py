"""Images from outside the training distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trilemma import noise
from trilemma.data.image_set import ImageSet
from trilemma.data.outlier_images import OutsideImages, phase_scrambled
from trilemma.errors import DataError

SEEDS = noise.image_seeds(12, torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cache(shared_cache: None) -> None:
    """Decoded images go into a temporary folder."""


def smooth(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Images of little contrast, so that nothing is clipped."""
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))
    return 0.45 + 0.1 * images


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 8), (3, 8, 5)])
def test_scrambling_keeps_amplitudes_mean_and_the_relation_of_the_channels(shape) -> None:
    images = smooth(12, shape)
    scrambled = phase_scrambled(images, SEEDS)
    one, other = (np.fft.fft2(x.double().numpy()) for x in (images, scrambled))
    np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-5)
    torch.testing.assert_close(images.mean((2, 3)), scrambled.mean((2, 3)), atol=1e-6, rtol=0)
    between = [f * f[:, :1].conj() for f in (one, other)]  # phase differences of the channels
    np.testing.assert_allclose(between[0], between[1], atol=1e-4, rtol=1e-5)
    assert (images - scrambled).flatten(1).norm(dim=1).min() > 0.1


def test_a_scrambled_image_does_not_depend_on_its_batch() -> None:
    images = smooth(12, (3, 8, 8))
    whole = phase_scrambled(images, SEEDS)
    parts = [phase_scrambled(i, s) for i, s in zip(images.split(5), SEEDS.split(5), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)
    assert not torch.allclose(phase_scrambled(images, noise.derive(SEEDS, 0)), whole)


@pytest.mark.parametrize("name", ["phase-scrambled", "mixed"])
def test_what_is_made_of_training_images_is_fresh_and_none_of_them(toy, name: str) -> None:
    data = toy.image_set()
    outside = OutsideImages(name, data, "cpu")
    made = outside(SEEDS)
    assert made.shape == (12, 1, 4, 4) and made.min() >= 0 and made.max() <= 1
    assert torch.equal(outside(SEEDS), made)
    many = outside(noise.image_seeds(200, torch.Generator().manual_seed(1)))
    assert len(many.flatten(1).unique(dim=0)) > 180  # 15 images do not mix in many more ways
    distance = (made.flatten(1)[:, None] - data.float_images().flatten(1)[None]).norm(dim=2)
    assert distance.min() > 0.01


def test_mixed_images_are_means_of_four(toy) -> None:
    data = toy.image_set(per_class=50)
    spread = [
        x.var(0).mean()
        for x in (data.float_images(), OutsideImages("mixed", data, "cpu")(torch.arange(4000)))
    ]
    assert spread[1] == pytest.approx(float(spread[0] / 4), rel=0.1)


def photographs(folder: Path, size: tuple[int, int], channels: int) -> Path:
    from PIL import Image

    for number in range(6):
        (folder / "things").mkdir(parents=True, exist_ok=True)
        pixels = np.full((*size, 3) if channels == 3 else size, 40 * number, dtype=np.uint8)
        if channels == 3:
            pixels[..., 1:] = 0
        Image.fromarray(pixels).save(folder / "things" / f"{number}.png")
    return folder


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3), (3, 3)])
def test_other_images_are_resized_and_converted_to_those_of_training(
    toy, tmp_path: Path, given: int, wanted: int
) -> None:
    path = photographs(tmp_path / "photos", (12, 16), given)
    outside = OutsideImages(str(path), toy.image_set(shape=(wanted, 4, 4)), "cpu")
    drawn = outside(noise.image_seeds(100, torch.Generator().manual_seed(0)))
    assert drawn.shape == (100, wanted, 4, 4)
    values = torch.arange(6) * 40 / 255 * (0.299 if given == 3 and wanted == 1 else 1.0)
    torch.testing.assert_close(drawn[:, 0, 0, 0].unique(), values, atol=1e-5, rtol=0)
    if wanted == 3:
        assert torch.equal(drawn[:, 1], torch.zeros(100, 4, 4) if given == 3 else drawn[:, 0])


def test_impossible_sources_are_named(toy, tmp_path: Path) -> None:
    from trilemma.data.sources import load_splits

    with pytest.raises(DataError, match="'phase-scambled' is neither a data set nor a path"):
        OutsideImages("phase-scambled", toy.image_set(), "cpu")
    with pytest.raises(DataError, match="these are the training data"):
        OutsideImages("digits", load_splits("digits").train, "cpu")
    oblong = ImageSet(
        torch.zeros(3, 1, 4, 6, dtype=torch.uint8), torch.arange(3), ("a", "b", "c"), "toy", "train"
    )
    with pytest.raises(DataError, match="square, but the training images are 1x4x6"):
        OutsideImages(str(tmp_path), oblong, "cpu")
