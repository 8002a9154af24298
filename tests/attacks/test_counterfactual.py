"""Counterfactual images: the projection onto ball and box, and least distances against those of a linear classifier."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trilemma.attacks.counterfactual import distances, least_budget, project, reaches, within_budget
from trilemma.attacks.hyperplane import displacement
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.threat import Threat

NORMS = ("l2", "linf")
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def linear() -> tuple[Classifier, Tensor, Tensor]:
    """A linear classifier of two classes, and the normal vector and offset of its boundary."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    layer = network[1]
    assert isinstance(layer, nn.Linear)
    normal = (layer.weight[1] - layer.weight[0]).detach().double()
    offset = (layer.bias[1] - layer.bias[0]).detach().double()
    return Classifier(network, 2, image_shape=(3, 4, 4)).eval(), normal, offset


def images_of(count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def other_class(clf: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return 1 - clf.logits(images).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=25)
@given(radius=st.floats(1e-3, 4.0), spread=st.floats(0.01, 5.0), seed=st.integers(0, 2**31))
def test_the_projection_is_in_ball_and_box_and_no_point_of_both_is_nearer(norm, radius, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(4, 1, 5, 5, generator=generator).round(decimals=1)
    images = clean + spread * torch.randn(clean.shape, generator=generator)
    radii = torch.tensor([radius, radius / 2, 2 * radius, radius], dtype=torch.float64)
    projected = project(images, clean, radii, norm)
    assert (distances(projected, clean, norm) <= radii * (1 + 1e-5) + 1e-6).all()
    assert projected.min() >= 0 and projected.max() <= 1
    # Of a convex set, the projection p of x satisfies <x - p, z - p> <= 0 for every z of the set.
    others = torch.rand(50, 4, 1, 5, 5, generator=generator)
    inside = torch.stack([project(other, clean, radii, norm) for other in others])
    if norm == "l2":
        outward, along = (images - projected).double(), (inside - projected).double()
        # As far as rounding moves a point.
        limits = 1e-5 * (outward.flatten(1).norm(dim=1) + 1e-3)
        assert ((outward * along).flatten(2).sum(2) <= limits).all()
    else:
        limit = radii.float().view(-1, 1, 1, 1)
        expected = images.clamp(clean - limit, clean + limit).clamp(0, 1)
        assert torch.allclose(projected, expected, atol=1e-6)


def test_an_image_inside_is_its_own_projection():
    clean = images_of(3, 0.2, 0.8)
    images = clean + 0.01
    for norm in NORMS:
        assert torch.allclose(project(images, clean, torch.full((3,), 2.0).double(), norm), images)


@pytest.mark.parametrize("norm", NORMS)
def test_the_least_distance_to_a_hyperplane_is_its_closed_form(linear, norm):
    clf, normal, offset = linear
    # Grey images, that reach the plane before the box: |<w, x> + b| / |w| in the dual norm.
    clean = images_of(20, 0.45, 0.55)
    value = (clean.double().flatten(1) @ normal + offset).abs()
    expected = value / (normal.norm() if norm == "l2" else normal.abs().sum())
    targets = other_class(clf, clean)
    with inner_loop(clf):
        nearest = least_budget(clf, clean, targets, norm, TOLERANCE)
    found = distances(nearest.images, clean, norm)
    assert nearest.success.all()
    assert (found >= expected - 1e-5).all() and (found <= expected + TOLERANCE + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_bracket_holds_the_least_distance_also_where_pixels_reach_the_box(linear, norm):
    clf, normal, offset = linear
    clean = images_of(20, 0.0, 1.0)
    value = clean.double().flatten(1) @ normal + offset
    moves = displacement(clean.double().flatten(1), normal.expand(20, -1), value, norm)
    expected = moves.norm(dim=1) if norm == "l2" else moves.abs().amax(1)
    targets = other_class(clf, clean)
    with inner_loop(clf):
        nearest = least_budget(clf, clean, targets, norm, TOLERANCE)
        with torch.no_grad():
            logits = clf.logits(nearest.images)
    found = distances(nearest.images, clean, norm)
    # Success at the least distance, and no success a tolerance below.
    assert nearest.success.all() and (logits.argmax(1) == targets).all()
    assert (nearest.failed <= expected + 1e-5).all() and (expected <= found + 1e-5).all()
    assert (found - nearest.failed <= TOLERANCE + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_budget_just_above_the_least_distance_suffices_and_one_just_below_does_not(linear, norm):
    clf, normal, offset = linear
    clean = images_of(1, 0.45, 0.55)
    value = float((clean.double().flatten(1) @ normal + offset).abs())
    least = value / float(normal.norm() if norm == "l2" else normal.abs().sum())
    targets = other_class(clf, clean)
    with inner_loop(clf):
        for factor in (0.99, 1.01):
            threat = Threat(norm, factor * least)
            best = within_budget(clf, clean, targets, threat, steps=100)
            assert bool(best.success) == (factor > 1)
            assert threat.contains(best.images, clean).all()


def test_a_class_that_no_image_has_is_not_reached(linear):
    clf = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), 3, image_shape=(3, 4, 4)).eval()
    with torch.no_grad():
        layer = clf.network[1]  # type: ignore[index]
        layer.bias.copy_(torch.tensor([0.0, 0.0, -1e4]))
    with inner_loop(clf):
        nearest = least_budget(clf, images_of(2, 0, 1), torch.tensor([2, 2]), "linf", 0.1, steps=2)
    assert not nearest.success.any() and (nearest.failed == 1.0).all()


def test_the_result_is_the_best_of_all_steps_and_every_step_is_observed(linear):
    clf, _, _ = linear
    clean = images_of(6, 0.3, 0.7)
    targets = other_class(clf, clean)
    seen: list[tuple[Tensor, Tensor]] = []
    threat = Threat("l2", 1.0)
    with inner_loop(clf):
        best = within_budget(clf, clean, targets, threat, "joint", 7, lambda *pair: seen.append(pair))
    assert len(seen) == 8 and torch.equal(seen[0][0], clean)
    energies = torch.stack([-logits.gather(1, targets[:, None])[:, 0] for _, logits in seen])
    success = torch.stack([reaches(logits, targets) for _, logits in seen])
    # Every image of the target class precedes every other one.
    ranked = energies.double() - 1e6 * success
    assert torch.equal(best.steps, ranked.argmin(0))
    chosen = torch.stack([images for images, _ in seen])[best.steps, torch.arange(6)]
    assert torch.equal(best.images, chosen)
    assert all(threat.contains(images, clean).all() for images, _ in seen)


def test_images_do_not_depend_on_their_batch(toy):
    clf, clean, targets = toy.mlp(), toy.images(4), torch.tensor([2, 1, 0, 2])
    with torch.no_grad():
        moving = (clf.logits(clean).argmax(1) != targets).nonzero().squeeze(1)
    clean, targets = clean[moving], targets[moving]
    with inner_loop(clf):
        together = least_budget(clf, clean, targets, "l2", 0.05, steps=20)
        for k in range(len(clean)):
            alone = least_budget(clf, clean[k : k + 1], targets[k : k + 1], "l2", 0.05, steps=20)
            assert torch.allclose(alone.images[0], together.images[k], atol=1e-4)
            assert math.isclose(float(alone.failed[0]), float(together.failed[k]), abs_tol=1e-4)
