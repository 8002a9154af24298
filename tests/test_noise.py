from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trilemma import noise

SEEDS = noise.image_seeds(4000, torch.Generator().manual_seed(0))


def kolmogorov(u: np.ndarray) -> float:
    return float(np.abs(np.sort(u) - (np.arange(len(u)) + 0.5) / len(u)).max() * np.sqrt(len(u)))


def test_uniform_noise_is_uniform_and_never_on_the_edge() -> None:
    u = noise.uniform(SEEDS, 3, (5,)).numpy()
    assert u.min() > 0 and u.max() < 1
    assert kolmogorov(u.ravel()) < 1.63  # the 1 % point


def test_normal_noise_is_standard_normal() -> None:
    n = noise.normal(SEEDS, 3, (5,)).double().numpy().ravel()
    assert kolmogorov(np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in n])) < 1.63
    assert abs(n.mean()) < 0.03 and abs(n.std() - 1) < 0.03
    assert np.isfinite(n).all()


def test_draws_of_pixels_streams_and_derived_seeds_are_uncorrelated() -> None:
    draws = [noise.normal(SEEDS, stream, (3,)) for stream in (0, 1, 2)]
    draws += [noise.normal(noise.derive(SEEDS, stream), 0, (3,)) for stream in (0, 1)]
    together = torch.cat(draws, dim=1).numpy()
    assert np.abs(np.corrcoef(together.T) - np.eye(15)).max() < 0.07


def test_neighbouring_seeds_are_uncorrelated() -> None:
    ordered = torch.arange(4001)
    u = noise.uniform(ordered, 0, (1,)).flatten().numpy()
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.05
    assert kolmogorov(u) < 1.63


def test_noise_belongs_to_the_image_and_not_to_its_place() -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for draw in (noise.uniform, noise.normal):
        whole = draw(SEEDS[:40], 5, (1, 3, 3))
        assert torch.equal(draw(SEEDS[:40][order], 5, (1, 3, 3)), whole[order])
        assert torch.equal(torch.cat([draw(part, 5, (1, 3, 3)) for part in SEEDS[:40].split(7)]), whole)


def test_seeds_drawn_in_parts_are_the_seeds_drawn_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [noise.image_seeds(count, generator) for count in (1, 7, 40)]
    assert torch.equal(torch.cat(parts), SEEDS[:48])
    assert len(SEEDS.unique()) == len(SEEDS)


def test_the_same_seed_and_stream_give_the_same_noise() -> None:
    assert torch.equal(noise.normal(SEEDS, 9, (4,)), noise.normal(SEEDS, 9, (4,)))
    assert not torch.equal(noise.normal(SEEDS, 9, (4,)), noise.normal(SEEDS, 10, (4,)))


def test_huge_streams_and_seeds_wrap() -> None:
    seeds = torch.tensor([2**62, -(2**63), 2**63 - 1])
    u = noise.uniform(seeds, 10**30, (2,))
    assert torch.isfinite(u).all() and len(u.unique()) == 6


def test_noise_has_the_moments_of_its_distribution() -> None:
    """Also along the elements of one image, and between elements that are half an image apart."""
    n = noise.normal(SEEDS[:64], 1, (2, 1001)).double().flatten(1)
    u = noise.uniform(SEEDS[:64], 1, (2, 1001)).double().flatten(1)
    for values, variance, kurtosis in ((n, 1.0, 3.0), ((u - 0.5), 1 / 12, 1.8)):
        size = values.numel()
        assert abs(values.mean()) < 4 * math.sqrt(variance / size)
        assert values.pow(2).mean() / variance - 1 < 4 * math.sqrt((kurtosis - 1) / size)
        assert abs(values.pow(3).mean()) < 4 * math.sqrt(15 / size)
        assert abs(values.pow(4).mean() / values.pow(2).mean() ** 2 - kurtosis) < 4 * math.sqrt(96 / size)
        for lag in (1, 2, 1001):
            product = (values[:, lag:] * values[:, :-lag]).mean() / variance
            assert abs(product) < 4 / math.sqrt(size), lag
        assert abs((values[1:] * values[:-1]).mean() / variance) < 4 / math.sqrt(size)
        squares = values.square() - variance
        assert abs((squares[:, 1001:] * squares[:, :-1001]).mean()) < 4 * 2 * variance**2 / math.sqrt(
            size / 2
        )


@pytest.mark.parametrize("block", [1, 7, 100, 10**9])
def test_images_that_are_hashed_together_do_not_matter(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    expected = [draw(SEEDS[:9], 2, (3, 5)) for draw in (noise.uniform, noise.normal)]
    monkeypatch.setattr(noise, "_BLOCK", block)
    for draw, values in zip((noise.uniform, noise.normal), expected, strict=True):
        assert torch.equal(draw(SEEDS[:9], 2, (3, 5)), values)
        assert draw(SEEDS[:0], 2, (3, 5)).shape == (0, 3, 5)


def test_the_stream_is_that_of_earlier_versions() -> None:
    """splitmix64 in Python integers: a run that is resumed by another version goes on with the same numbers."""

    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    golden, stream = 0x9E3779B97F4A7C15, 12
    for seed in (0, 5, 2**61 + 17, 2**64 - 3):
        key = mix((mix(seed) + stream * golden) % 2**64)
        hashes = [mix((key + i * golden) % 2**64) for i in range(1, 6)]
        signed = torch.tensor([seed - 2**64 if seed >= 2**63 else seed])
        uniform = noise.uniform(signed, stream, (5,))[0].tolist()
        assert uniform == [((value >> 41) + 0.5) / 2**23 for value in hashes]
        radius = [math.sqrt(-2 * math.log(((value >> 41) + 0.5) / 2**23)) for value in hashes]
        angle = [2 * math.pi * (value % 2**24) / 2**24 for value in hashes]
        wanted = [r * wave(a) for wave in (math.cos, math.sin) for r, a in zip(radius, angle, strict=True)]
        np.testing.assert_allclose(noise.normal(signed, stream, (9,))[0], wanted[:9], atol=2e-6)
