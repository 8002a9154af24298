from __future__ import annotations

import math

import numpy as np
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
