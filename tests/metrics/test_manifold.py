"""Precision, recall, density and coverage: toy geometry, and a naive NumPy loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trilemma.metrics.manifold import manifold, radii


def naive(samples: np.ndarray, real: np.ndarray, k: int, k_dc: int) -> tuple[float, float, float, float]:
    """The papers' definitions, one pair at a time."""

    def reach(points: np.ndarray, neighbours: int) -> list[float]:
        others = [
            [float(np.linalg.norm(p - q)) for j, q in enumerate(points) if j != i]
            for i, p in enumerate(points)
        ]
        return [sorted(gaps)[neighbours - 1] for gaps in others]

    real_k, real_dc, made_k = reach(real, k), reach(real, k_dc), reach(samples, k)
    apart = np.array([[np.linalg.norm(r - s) for s in samples] for r in real])
    precision = np.mean(
        [any(apart[i, j] <= real_k[i] for i in range(len(real))) for j in range(len(samples))]
    )
    recall = np.mean([any(apart[i, j] <= made_k[j] for j in range(len(samples))) for i in range(len(real))])
    density = sum(apart[i, j] <= real_dc[i] for i in range(len(real)) for j in range(len(samples)))
    coverage = np.mean([any(apart[i] <= real_dc[i]) for i in range(len(real))])
    return float(precision), float(recall), float(density) / (k_dc * len(samples)), float(coverage)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 14), st.integers(6, 14), st.integers(1, 4))
def test_equals_a_naive_loop_in_any_chunk(seed, n, m, width):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(n, width, generator=generator, dtype=torch.float64)
    real = 1.3 * torch.randn(m, width, generator=generator, dtype=torch.float64) + 0.3
    expected = naive(samples.numpy(), real.numpy(), 3, 5)
    for chunk in (1, 5, 1000):
        found = manifold(samples, real, chunk=chunk)
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)


def line(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_points_on_a_line_by_hand():
    real = line(0, 1, 2, 3)  # each reaches 1 to its nearest neighbour
    inside, outside = line(0.5, 2.5, 1.5), line(-1.5, 4.5, 9.0)
    assert manifold(inside, real, 1, 1).precision == 1.0
    assert manifold(outside, real, 1, 1).precision == 0.0
    # 0.5, 1.5 and 2.5 reach 1 to each other, so that 0 to 3 are all within 1/2 of one of them
    assert manifold(inside, real, 1, 1).recall == 1.0
    # each lies in the balls of its two neighbours only
    assert manifold(inside, real, 1, 1).density == 2.0


def test_samples_of_one_mode_are_precise_and_cover_half():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(200, 2, generator=generator)
    real = torch.cat([left, torch.randn(200, 2, generator=generator) + 50])
    found = manifold(torch.randn(400, 2, generator=generator), real)
    assert found.precision > 0.9
    assert found.recall <= 0.5 and 0.4 < found.coverage <= 0.5


def test_the_same_set_is_perfect_and_another_scale_changes_nothing():
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    found = manifold(points, points)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    other = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    assert manifold(points, other) == manifold(points * 1024 + 8, other * 1024 + 8)


def test_a_set_with_doubles_has_balls_of_no_size():
    assert radii(line(1.0, 1.0, 4.0), 1).tolist() == [0, 0, 9]


@pytest.mark.parametrize("bad", [torch.ones(5, 2), torch.full((9, 2), torch.nan)])
def test_refuses_what_has_no_manifold(bad):
    with pytest.raises(ValueError, match="more than 5 finite feature vectors"):
        manifold(bad, torch.randn(20, 2))
