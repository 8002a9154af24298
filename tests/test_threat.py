from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trilemma.errors import ConfigError
from trilemma.noise import image_seeds
from trilemma.threat import NORMS, Threat, image_norm

few = settings(max_examples=15, derandomize=True, deadline=None, database=None)


def images_and_far_points(seed: int, spread: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(8, 1, 3, 3, generator=generator)
    return clean, clean + spread * torch.randn(8, 1, 3, 3, generator=generator)


def test_a_radius_is_kept_exactly_as_written() -> None:
    threat = Threat("linf", "8/255")
    assert threat.fraction == Fraction(8, 255)
    assert threat.epsilon == 8 / 255
    assert str(threat) == "linf 8/255"
    assert Threat("l2", 0.5).fraction == Fraction(1, 2)
    assert Threat("linf", 0.1).fraction == Fraction(1, 10)
    assert Threat("linf", " 4 / 255 ") == Threat("linf", "4/255")


@pytest.mark.parametrize(
    ("norm", "radius", "message"),
    [
        ("l3", "8/255", "threat.norm: 'l3' is unknown; choose one of linf, l2"),
        ("linf", "8/0", "threat.radius: '8/0' is not a number such as 0.03 or '8/255'"),
        ("linf", "eight", "threat.radius: 'eight' is not a number"),
        ("linf", float("nan"), "threat.radius: nan is not a number"),
        ("linf", True, "threat.radius: True is not a number"),
        ("linf", "", "threat.radius: '' is not a number"),
        ("linf", 0, "threat.radius: 0 must be above 0"),
        ("l2", "-8/255", "threat.radius: '-8/255' must be above 0"),
        ("linf", 8, "threat.radius: 8 is more than the whole range [0, 1]; write '8/255'?"),
    ],
)
def test_a_bad_norm_or_radius_is_named(norm, radius, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Threat(norm, radius)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("radius", [3.0, 30.0])
def test_the_sphere_around_a_large_image_is_in_the_ball(radius: float) -> None:
    """In float32 the norm of 150,528 numbers is off by 1e-6 of itself, which is 3e-6 of the usual radius 3."""
    clean = torch.full((4, 3, 224, 224), 0.5)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    threat = Threat("l2", radius)
    reached = threat.project(clean + noise * (1.2 * radius / image_norm(noise)), clean)
    length = (reached.double() - clean).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((4,), radius).double(), atol=1e-6, rtol=0)
    assert threat.contains(reached, clean).all()
    assert not threat.contains(clean + (reached - clean) * (1 + 1e-5), clean).any()


@few
@given(st.sampled_from(NORMS), st.floats(0.01, 1.0), st.integers(0, 99))
def test_projection_ends_inside_and_is_idempotent(norm: str, radius: float, seed: int) -> None:
    threat = Threat(norm, radius)
    clean, far = images_and_far_points(seed)
    once = threat.project(far, clean)
    assert threat.contains(once, clean).all()
    torch.testing.assert_close(threat.project(once, clean), once, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_leaves_allowed_points_alone(norm: str) -> None:
    clean, near = images_and_far_points(0, spread=0.01)
    near = near.clamp(0, 1)
    torch.testing.assert_close(Threat(norm, 0.9).project(near, clean), near, atol=1e-6, rtol=0)


def test_projection_is_the_nearest_point_of_the_ball() -> None:
    clean = torch.full((1, 1, 1, 2), 0.5)
    far = clean + torch.tensor([0.3, -0.4])
    torch.testing.assert_close(
        Threat("linf", 0.2).project(far, clean) - clean, torch.tensor([[[[0.2, -0.2]]]])
    )
    torch.testing.assert_close(
        Threat("l2", 0.25).project(far, clean) - clean, torch.tensor([[[[0.15, -0.2]]]])
    )


def test_ascent_is_the_steepest_direction_of_unit_length() -> None:
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert torch.equal(Threat("linf", 1).ascent(gradient), torch.tensor([[[[1.0, -1.0]]], [[[0.0, 0.0]]]]))
    torch.testing.assert_close(
        Threat("l2", 1).ascent(gradient), torch.tensor([[[[0.6, -0.8]]], [[[0.0, 0.0]]]])
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_in_place_has_the_bits_of_its_formula(norm: str, memory_format: torch.memory_format) -> None:
    threat, step = Threat(norm, "8/255"), 2 / 255
    clean, images = torch.rand(2, 8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient = (images - clean).contiguous(memory_format=memory_format)
    gradient[0, 0, 0, 0] = torch.nan
    given = [tensor.clone() for tensor in (clean, images, gradient)]
    moved = threat.climbed(images, gradient, step)
    assert torch.equal(moved, images + step * threat.ascent(gradient)) and moved.is_contiguous()
    expected = threat.project(moved, clean)
    for tensor, before in zip((clean, images, gradient), given, strict=True):
        torch.testing.assert_close(tensor, before, rtol=0, atol=0, equal_nan=True)
    assert threat.project_(moved, clean) is moved and torch.equal(moved, expected)


@few
@given(st.sampled_from(NORMS), st.floats(0.01, 1.0), st.integers(0, 99))
def test_random_starts_are_inside(norm: str, radius: float, seed: int) -> None:
    threat = Threat(norm, radius)
    clean, _ = images_and_far_points(seed)
    start = threat.random_start(clean, image_seeds(8, torch.Generator().manual_seed(seed)))
    assert threat.contains(start, clean).all()
    assert (start != clean).flatten(1).any(1).all()


def starts(norm: str, count: int = 4000):
    """Offsets of random starts from images far from the box, in radii, ``[N, D]`` with D = 4."""
    threat = Threat(norm, 0.3)
    seeds = image_seeds(count, torch.Generator().manual_seed(0))
    middle = torch.full((count, 1, 2, 2), 0.5)
    return ((threat.random_start(middle, seeds) - middle) / 0.3).flatten(1).numpy()


def largest_gap_to_uniform(u: np.ndarray) -> float:
    """Kolmogorov's distance of a sample to U(0, 1)."""
    return float(np.abs(np.sort(u) - (np.arange(len(u)) + 0.5) / len(u)).max())


def test_random_starts_in_the_l2_ball_are_uniform_in_volume() -> None:
    offsets = starts("l2")
    radius = np.linalg.norm(offsets, axis=1)
    assert largest_gap_to_uniform(radius**4) < 1.63 / np.sqrt(4000)  # P(r <= t) = t^D
    directions = offsets / radius[:, None]
    assert np.abs(directions.mean(0)).max() < 0.04
    np.testing.assert_allclose(directions.T @ directions / 4000, np.eye(4) / 4, atol=0.03)


def test_random_starts_in_the_linf_ball_are_uniform_in_every_pixel() -> None:
    offsets = starts("linf")
    for pixel in range(4):
        assert largest_gap_to_uniform((offsets[:, pixel] + 1) / 2) < 1.63 / np.sqrt(4000)
    assert np.abs(np.corrcoef(offsets.T) - np.eye(4)).max() < 0.06


def test_the_scale_of_a_random_start_is_in_radii() -> None:
    clean = torch.full((64, 1, 4, 4), 0.5)
    seeds = image_seeds(64, torch.Generator().manual_seed(0))
    wide = Threat("linf", 0.1).random_start(clean, seeds, scale=2.0) - clean
    assert 0.19 < wide.abs().max() <= 0.2 + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_a_random_start_may_be_asked_for_without_the_box(norm: str) -> None:
    clean, seeds = torch.zeros(64, 1, 4, 4), image_seeds(64, torch.Generator().manual_seed(0))
    threat = Threat(norm, 0.1)
    free = threat.random_start(clean, seeds, clip=False)
    assert free.min() < 0
    assert torch.equal(free.clamp(0, 1), threat.random_start(clean, seeds))


def test_the_radius_per_pixel_value_is_that_of_a_full_step_of_the_same_length() -> None:
    shape = torch.Size((3, 4, 4))
    assert Threat("linf", "8/255").pixel_radius(shape) == 8 / 255
    step = torch.full((1, *shape), Threat("l2", 0.5).pixel_radius(shape))
    assert image_norm(step).item() == pytest.approx(0.5)


@pytest.mark.parametrize("norm", NORMS)
def test_no_images_are_no_trouble(norm: str) -> None:
    nothing = torch.empty(0, 1, 4, 4)
    threat = Threat(norm, 0.1)
    assert threat.random_start(nothing, torch.empty(0, dtype=torch.int64)).shape == (0, 1, 4, 4)
    assert threat.project(nothing, nothing).shape == (0, 1, 4, 4)


def test_contains_refuses_what_leaves_ball_or_box_or_is_not_finite() -> None:
    clean = torch.full((4, 1, 1, 2), 0.95)
    points = clean.clone()
    points[1, ..., 0] = 0.7  # outside the ball
    points[2, ..., 0] = 1.05  # outside the box
    points[3, ..., 0] = float("nan")
    for norm in NORMS:
        assert Threat(norm, 0.2).contains(points, clean).tolist() == [True, False, False, False]
