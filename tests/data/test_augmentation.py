"""Augmentation: the batched form equals the plain loop, and an image's own numbers decide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trilemma import noise
from trilemma.data import Augmentation, default_augmentation
from trilemma.errors import DataError

IMAGES = torch.rand(16, 3, 8, 10, generator=torch.Generator().manual_seed(0))
SEEDS = torch.arange(16) * 7919


def plain_loop(images: torch.Tensor, seeds: torch.Tensor, crop: int, flip: bool, cutout: int) -> torch.Tensor:
    height, width = images.shape[2:]
    done = []
    for image, (top, left, mirror, row, column) in zip(
        images, noise.uniform(seeds, 0, (5,)).tolist(), strict=True
    ):
        y, x = int(top * (2 * crop + 1)), int(left * (2 * crop + 1))
        image = F.pad(image, (crop,) * 4)[:, y : y + height, x : x + width].clone()
        if flip and mirror < 0.5:
            image = image.flip(2)
        y, x = int(row * height) - cutout // 2, int(column * width) - cutout // 2
        image[:, max(0, y) : max(0, y + cutout), max(0, x) : max(0, x + cutout)] = 0
        done.append(image)
    return torch.stack(done)


@pytest.mark.parametrize(
    ("crop", "flip", "cutout"), [(2, True, 0), (0, True, 0), (1, False, 0), (0, False, 3), (2, True, 4)]
)
def test_batched_augmentation_equals_the_plain_loop(crop: int, flip: bool, cutout: int) -> None:
    ours = Augmentation(crop, flip, cutout).apply(IMAGES, SEEDS)
    assert torch.equal(ours, plain_loop(IMAGES, SEEDS, crop, flip, cutout))
    assert ours.is_contiguous()


def test_result_of_an_image_does_not_depend_on_the_batch() -> None:
    augmentation = Augmentation(2, True, 3)
    alone = torch.cat([augmentation.apply(IMAGES[i : i + 1], SEEDS[i : i + 1]) for i in range(16)])
    assert torch.equal(alone, augmentation.apply(IMAGES, SEEDS))


def test_shifts_are_uniform_and_mirrors_fair() -> None:
    marked = torch.zeros(9000, 1, 5, 5)
    marked[:, :, 2, 1] = 1.0  # away from the middle, so that a mirror shows
    moved = Augmentation(crop=1, flip=True)(marked, torch.Generator().manual_seed(0))
    counts = moved.sum(dim=(0, 1, 2))
    # Columns 0 to 2 without a mirror, 2 to 4 with one; each third of a half.
    expected = torch.tensor([1, 1, 2, 1, 1]) * 9000 / 6
    assert (counts - expected).abs().max() < 4 * 9000**0.5 / 2
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(9000))


def test_nothing_asked_for_returns_the_same_object() -> None:
    assert Augmentation()(IMAGES) is IMAGES


def test_generator_decides() -> None:
    augmentation = Augmentation(2, True)
    first = augmentation(IMAGES, torch.Generator().manual_seed(3))
    assert torch.equal(first, augmentation(IMAGES, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, augmentation(IMAGES, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("digits", (1, 8, 8), Augmentation(1, False)),
        ("mnist", (1, 28, 28), Augmentation(3, False)),
        ("svhn", (3, 32, 32), Augmentation(4, False)),
        ("svhn@16", (3, 16, 16), Augmentation(2, False)),
        ("fashion-mnist", (1, 28, 28), Augmentation(3, True)),
        ("cifar10-jpeg", (3, 32, 32), Augmentation(4, True)),
        ("imagefolder:1a2b3c4d5e6f", (3, 64, 48), Augmentation(6, True)),
    ],
)
def test_default_augmentation(name: str, shape: tuple[int, int, int], expected: Augmentation) -> None:
    assert default_augmentation(name, shape) == expected


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="crop -1"):
        Augmentation(crop=-1)
