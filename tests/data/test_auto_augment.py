"""Each operation of AutoAugment against Pillow's on 8-bit levels, and the draw of the policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from trilemma import noise
from trilemma.data import auto_augment as ours
from trilemma.data.auto_augment import OPERATIONS, POLICY, auto_augment

AFFINE, NEAREST = Image.Transform.AFFINE, Image.Resampling.NEAREST


def photograph(channels: int, size: int = 32) -> Any:
    """Smooth shapes with some noise, uint8 ``[H, W]`` or ``[H, W, 3]``, using 30 to 220 of the 256 levels."""
    generator = np.random.default_rng(channels)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [
        np.sin(7 * x * (c + 1) + 4 * y) + np.cos(5 * y - c) + 0.3 * generator.normal(size=x.shape)
        for c in range(channels)
    ]
    stacked = np.stack(waves, -1)
    stacked = (stacked - stacked.min()) / (stacked.max() - stacked.min())
    levels = (30 + 190 * stacked).round().astype(np.uint8)
    return levels if channels == 3 else levels[..., 0]


def transformed(matrix: Callable[[float, Any], tuple[float, ...]]) -> Callable[[Any, float], Any]:
    return lambda image, m: image.transform(image.size, AFFINE, matrix(m, image), resample=NEAREST)


REFERENCE: dict[str, tuple[Callable[[Any, float], Any], list[float]]] = {
    "shear-x": (transformed(lambda m, _: (1, m, 0, 0, 1, 0)), [-0.3, 0.1, 0.27]),
    "shear-y": (transformed(lambda m, _: (1, 0, 0, m, 1, 0)), [-0.3, 0.1, 0.27]),
    "translate-x": (transformed(lambda m, i: (1, 0, int(m * i.width), 0, 1, 0)), [-0.453, 0.15, 0.3]),
    "translate-y": (transformed(lambda m, i: (1, 0, 0, 0, 1, int(m * i.height))), [-0.453, 0.15, 0.3]),
    "rotate": (lambda image, m: image.rotate(m, resample=NEAREST), [-30.0, 6.7, 23.0]),
    "brightness": (lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m), [-0.9, -0.3, 0.7]),
    "colour": (lambda image, m: ImageEnhance.Color(image).enhance(1 + m), [-0.9, -0.3, 0.9]),
    "contrast": (lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m), [-0.7, -0.3, 0.7]),
    "sharpness": (lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m), [-0.9, 0.1, 0.9]),
    "posterise": (lambda image, m: ImageOps.posterize(image, int(m)), [4.0, 5.0, 8.0]),
    "solarise": (lambda image, m: ImageOps.solarize(image, math.ceil(m)), [28.3, 113.3, 198.3]),
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), [0.0]),
    "equalise": (lambda image, _: ImageOps.equalize(image), [0.0]),
    "invert": (lambda image, _: ImageOps.invert(image), [0.0]),
}


def tensor(levels: np.ndarray[Any, Any]) -> torch.Tensor:
    channels_last = levels if levels.ndim == 3 else levels[..., None]
    return torch.from_numpy(channels_last.copy()).permute(2, 0, 1).float()[None] / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows_within_two_levels(name: str, channels: int) -> None:
    reference, magnitudes = REFERENCE[name]
    levels = photograph(channels)
    changed = 0
    for magnitude in magnitudes:
        wanted = np.asarray(reference(Image.fromarray(levels), magnitude))
        found = OPERATIONS[name](tensor(levels), torch.tensor([magnitude]))
        assert found.shape == (1, channels, 32, 32) and found.min() >= 0 and found.max() <= 1
        gap = (found - tensor(wanted)).abs()[0].amax(0) * 255
        # a pixel whose source lies on the edge of two may be taken from either; Pillow computes in fixed point
        odd = (gap > 2.01).float().mean()
        assert odd <= (0.01 if name in ("shear-x", "shear-y", "rotate") else 0.0), (
            magnitude,
            float(gap.max()),
        )
        changed += not np.array_equal(wanted, levels)
    assert changed or (name, channels) == ("colour", 1), "the reference must do something"


def test_levels_that_cannot_be_spread_stay() -> None:
    flat = torch.full((2, 3, 8, 8), 0.4)
    for name in ("autocontrast", "equalise"):
        assert torch.equal(OPERATIONS[name](flat, torch.zeros(2)), flat)


def test_magnitudes_are_those_of_the_policy() -> None:
    """Magnitude 9 of each operation, and the two that run the other way."""
    assert ours._strength("rotate", 9) == 30.0 and ours._strength("rotate", 3) == 10.0
    assert (
        ours._strength("translate-x", 9) == pytest.approx(150 / 331) and ours._strength("shear-y", 9) == 0.3
    )
    assert [ours._strength("posterise", k) for k in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert ours._strength("solarise", 0) == 255 and ours._strength("solarise", 9) == 0
    assert len(POLICY) == 25 and {name for pair in POLICY for name, _, _ in pair} == set(OPERATIONS) - {
        "shear-x"
    }


def one_by_one(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """The policy as a plain loop over images."""
    signed = {
        "shear-x",
        "shear-y",
        "translate-x",
        "translate-y",
        "rotate",
        "brightness",
        "colour",
        "contrast",
        "sharpness",
    }
    done = []
    for image, numbers in zip(images.split(1), noise.uniform(seeds, 0, (5,)).tolist(), strict=True):
        for (name, probability, magnitude), act, sign in zip(
            POLICY[int(25 * numbers[0])], numbers[1::2], numbers[2::2], strict=True
        ):
            if act < probability:
                strength = ours._strength(name, magnitude) * (-1 if name in signed and sign < 0.5 else 1)
                image = OPERATIONS[name](image, torch.tensor([strength]))
        done.append(image)
    return torch.cat(done)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_batch_is_the_plain_loop_and_an_image_does_not_depend_on_it(channels: int) -> None:
    images = torch.rand(300, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    before, seeds = images.clone(), torch.arange(300) * 7919
    found = auto_augment(images, seeds)
    assert torch.equal(images, before)
    torch.testing.assert_close(found, one_by_one(images, seeds), atol=1e-6, rtol=0)
    assert found.min() >= 0 and found.max() <= 1
    changed = (found != images).flatten(1).any(1).float().mean()
    assert 0.45 < changed < 1.0  # 64 pixels are too few to be equalised
    torch.testing.assert_close(auto_augment(images[40:43], seeds[40:43]), found[40:43], atol=1e-6, rtol=0)
