"""Projections onto a hyperplane in the box, against solvers that share no code with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog  # type: ignore[import-untyped]
from torch import Tensor

from trilemma.attacks.hyperplane import displacement
from trilemma.threat import NORMS


def project(norm: str, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The projection of ``x`` onto ``<w, z> + b = 0`` in the box, by the displacement under test."""
    return (x + displacement(x, w, (w * x).sum(-1) + b, norm)).clamp(0.0, 1.0)


def problem(seed: int, count: int = 8, pixels: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Points, normals and offsets in float64; some pixels at the box, some weights 0 or equal, all feasible."""
    random = np.random.default_rng(seed)
    x = random.random((count, pixels)).round(1)
    w = random.normal(size=(count, pixels)) * (random.random((count, pixels)) > 0.2)
    w[:, 1] = w[:, 0]
    inside = random.random((count, pixels))
    return torch.tensor(x), torch.tensor(w), torch.tensor(-(w * inside).sum(1))


def linf_distance(x: np.ndarray, w: np.ndarray, b: float) -> float:
    """``min r`` over (z, r) with ``|z - x| <= r``, ``<w, z> = -b`` and z in the box: a linear program."""
    pixels = len(x)
    one, identity = np.ones((pixels, 1)), np.eye(pixels)
    found = linprog(
        [0.0] * pixels + [1.0],
        A_ub=np.block([[identity, -one], [-identity, -one]]),
        b_ub=np.concatenate([x, -x]),
        A_eq=[[*w, 0.0]],
        b_eq=[-b],
        bounds=[(0, 1)] * pixels + [(0, None)],
    )
    assert found.success
    return float(found.fun)


def l2_nearest(x: np.ndarray, w: np.ndarray, b: float) -> np.ndarray:
    """``clip(x - lam w)`` with ``lam`` found by bisection of the falling function ``<w, clip(x - lam w)> + b``."""
    low, high = -1e9, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        positive = w @ np.clip(x - middle * w, 0, 1) + b > 0
        low, high = (middle, high) if positive else (low, middle)
    nearest: np.ndarray = np.clip(x - high * w, 0, 1)
    return nearest


@pytest.mark.parametrize("seed", range(3))
def test_linf_is_on_the_hyperplane_in_the_box_and_as_near_as_the_linear_program_says(seed: int) -> None:
    x, w, b = problem(seed)
    z = project("linf", x, w, b)
    assert z.min() >= 0 and z.max() <= 1
    torch.testing.assert_close(
        (w * z).sum(1) + b, torch.zeros(len(x), dtype=torch.float64), atol=1e-12, rtol=0
    )
    wanted = [linf_distance(*each) for each in zip(x.numpy(), w.numpy(), b.tolist(), strict=True)]
    np.testing.assert_allclose((z - x).abs().amax(1), wanted, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_l2_is_the_point_that_bisection_of_the_dual_finds(seed: int) -> None:
    x, w, b = problem(seed)
    wanted = [l2_nearest(*each) for each in zip(x.numpy(), w.numpy(), b.tolist(), strict=True)]
    np.testing.assert_allclose(project("l2", x, w, b), np.stack(wanted), atol=1e-9)


def test_l2_satisfies_the_conditions_of_optimality() -> None:
    """One multiplier for all pixels off the box; at the box the gradient of the Lagrangian points outwards."""
    x, w, b = problem(5, count=50, pixels=20)
    z = project("l2", x, w, b)
    off = (z > 0) & (z < 1) & (w != 0)
    assert off.any(1).all()
    ratio = torch.where(off, (x - z) / w, torch.nan)
    multiplier = ratio.nanmedian(1, keepdim=True).values
    slope = z - x + multiplier * w
    assert torch.where(off, slope, 0.0).abs().max() < 1e-12
    assert slope[z == 0].min() >= -1e-12 and slope[z == 1].max() <= 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_a_hyperplane_that_misses_the_box_gives_the_corner_nearest_to_it(norm: str) -> None:
    x, w = torch.tensor([[0.2, 0.7, 0.4]] * 2), torch.tensor([[1.0, -2.0, 0.0]] * 2)
    z = project(norm, x, w, torch.tensor([9.0, -9.0]))
    assert torch.equal(z, torch.tensor([[0.0, 1.0, 0.4], [1.0, 0.0, 0.4]]))


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_moves_without_weights_or_on_the_hyperplane(norm: str) -> None:
    x = torch.tensor([[0.25, 1.0, 0.0, 0.5]])
    assert torch.equal(project(norm, x, torch.zeros(1, 4), torch.tensor([3.0])), x)
    assert torch.equal(project(norm, x, torch.ones(1, 4), torch.tensor([-1.75])), x)


@pytest.mark.parametrize("norm", NORMS)
def test_from_a_corner_of_the_box_only_the_pixels_that_may_move_do(norm: str) -> None:
    x, w = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, -1.0]])
    z = project(norm, x, w, torch.tensor([-0.4]))  # <w, x> + b = 0.6; the first pixel is at the box
    torch.testing.assert_close(z, torch.tensor([[0.0, 0.7, 0.3]]))


@pytest.mark.parametrize("norm", NORMS)
def test_a_long_chain_of_pixels_that_stop_one_after_the_other_is_followed_to_its_end(norm: str) -> None:
    """Rooms that double while weights halve stop almost one by one: many Newton steps, and still exact."""
    room = 2.0 ** -torch.arange(30, dtype=torch.float64)
    w = (1.5 ** torch.arange(30, dtype=torch.float64))[None]
    x = room[None]
    b = -(w * x).sum(1) * 1e-3
    z = project(norm, x, w, b)
    torch.testing.assert_close((w * z).sum(1), -b)
    if norm == "l2":
        np.testing.assert_allclose(z[0], l2_nearest(x[0].numpy(), w[0].numpy(), float(b)), atol=1e-9)
    else:
        assert (x - z).max() == pytest.approx(linf_distance(x[0].numpy(), w[0].numpy(), float(b)), abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factor", [1e-4, -3.0, 1e4])
def test_the_scale_and_sign_of_the_equation_do_not_matter(norm: str, factor: float) -> None:
    x, w, b = problem(2)
    torch.testing.assert_close(project(norm, x, factor * w, factor * b), project(norm, x, w, b))


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_is_projected_as_if_alone_or_broadcast(norm: str) -> None:
    x, w, b = problem(3, count=12)
    together = project(norm, x, w, b)
    alone = torch.cat([project(norm, *each) for each in zip(x.split(1), w.split(1), b.split(1), strict=True)])
    torch.testing.assert_close(alone, together, atol=1e-14, rtol=0)
    torch.testing.assert_close(project(norm, x[0], w[0], b[0]), together[0], atol=1e-14, rtol=0)
    shared = project(norm, x[::4, None], w.view(3, 4, -1), b.view(3, 4))
    every = project(norm, x[::4].repeat_interleave(4, 0), w, b)
    torch.testing.assert_close(shared.flatten(0, 1), every, atol=1e-14, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), pixels=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_in_float32_the_point_is_in_the_box_and_on_the_hyperplane_to_rounding(
    norm: str, seed: int, pixels: int, scale: float
) -> None:
    x, w, b = (value.float() for value in problem(seed, pixels=max(pixels, 2)))
    w, b = w * scale, b * scale
    z = project(norm, x, w, b)
    assert z.min() >= 0 and z.max() <= 1
    assert (((w * z).sum(1) + b).abs() <= 2e-6 * (w.abs().sum(1) + b.abs())).all()
    exact = project(norm, x.double(), w.double(), b.double())
    distance = [(each - x).flatten(1).norm(float("inf") if norm == "linf" else 2, 1) for each in (z, exact)]
    torch.testing.assert_close(distance[0].double(), distance[1].double(), atol=2e-4, rtol=1e-4)
