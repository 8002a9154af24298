"""The step of each sampler, its published form on [-1, 1], and the loop of JEM++ that does nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from trilemma import noise, samplers
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.config.registry import SAMPLERS
from trilemma.errors import ConfigError
from trilemma.walks import objectives

SEEDS = noise.image_seeds(6, torch.Generator().manual_seed(0))


class Smooth(nn.Module):
    """An energy landscape given on [-1, 1]: an affine first layer, then anything; gradients beyond 1 exist."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.rest = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(3.0)

    def forward(self, images):
        return self.rest(self.first(images))


def classifier():
    """The landscape seen from [0, 1]: the network is handed x' = 2 x - 1."""
    return Classifier(Smooth(), 3, mean=[0.5], std=[0.5]).eval()


def published_gradient(network, images):
    """grad_{x'} E(x') on [-1, 1]."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(-network(images).logsumexp(1).sum(), images)
    return gradient


def run(sampler, clf, images, steps, **options):
    with inner_loop(clf):
        return sampler(clf, images, objectives.marginal_energy(clf), steps, **options)


def test_jem_chain_on_unit_images_is_the_published_one(toy) -> None:
    clf, images = classifier(), toy.images()
    published = 2 * images - 1
    for step in range(5):  # x' <- x' - grad E + 0.01 n, no clipping
        white = noise.normal(SEEDS, step + 1, (1, 4, 4))
        published = published - 1.0 * published_gradient(clf.network, published) + 0.01 * white
    ours = run(samplers.langevin, clf, images, 5, seeds=SEEDS, clip=False)
    torch.testing.assert_close(2 * ours - 1, published, atol=1e-3, rtol=1e-4)
    assert ours.min() < 0 or ours.max() > 1, "the toy must leave the box for the test to mean anything"


def test_proximal_chain_on_unit_images_is_the_published_one(toy) -> None:
    clf, images = classifier(), toy.images()
    published = 2 * images - 1
    clamped = 0
    for _ in range(5):  # x' <- clip(x' - clamp(grad E, +-1), +-1)
        gradient = published_gradient(clf.network, published)
        clamped += int((gradient.abs() > 1).sum())
        published = (published - gradient.clamp(-1, 1)).clamp(-1, 1)
    ours = run(samplers.proximal, clf, images, 5)
    torch.testing.assert_close(2 * ours - 1, published, atol=1e-4, rtol=1e-4)
    assert clamped > 0, "the clamp must act for the test to mean anything"


def test_the_inner_loop_of_jem_plus_plus_is_ten_plain_proximal_steps(toy) -> None:
    clf, images = classifier(), toy.images()
    network, x = clf.network, 2 * toy.images() - 1
    for _ in range(10):
        first = network.first(x).detach().requires_grad_()
        (frozen,) = torch.autograd.grad(-network.rest(first).logsumexp(1).sum(), first)
        start, moved = x, x
        for _ in range(
            5
        ):  # the gradient at the first layer's output is kept; only that layer is gone through again
            inner = moved.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((network.first(inner) * frozen).sum(), inner)
            moved = moved - 0.2 * gradient.clamp(-1, 1)
        assert not torch.equal(moved, start)
        x = moved.detach().clamp(-1, 1)
    ours = run(samplers.proximal, clf, images, 10)
    torch.testing.assert_close(2 * ours - 1, x, atol=1e-4, rtol=1e-4)


def test_momentum_follows_its_formula(toy) -> None:
    clf, x = classifier(), toy.images()
    velocity = torch.zeros_like(x)
    for step in range(4):
        here = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-clf(here).logsumexp(1).sum(), here)
        velocity = 0.8 * velocity - 0.0125 * gradient
        x = (x + velocity + 0.001 * noise.normal(SEEDS, step + 1, (1, 4, 4))).clamp(0, 1)
    torch.testing.assert_close(
        run(samplers.momentum, clf, toy.images(), 4, seeds=SEEDS), x, atol=1e-5, rtol=0
    )


def test_normalised_steps_have_their_length_down_the_gradient(toy) -> None:
    clf, x = classifier(), toy.images()
    for _ in range(4):
        here = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-clf(here).logsumexp(1).sum(), here)
        x = (x - 0.15 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)
    torch.testing.assert_close(
        run(samplers.normalised, clf, toy.images(), 4, step_size=0.15), x, atol=1e-5, rtol=0
    )
    middle = torch.full((6, 1, 4, 4), 0.5)
    for clamp in (None, 1e-3):
        moved = run(samplers.normalised, clf, middle, 1, step_size=0.3, clamp=clamp) - middle
        torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((6,), 0.3))


def test_a_normalised_step_without_a_gradient_stays(toy) -> None:
    clf, images = classifier(), toy.images()
    with torch.no_grad():
        clf.network.first.weight.zero_()
    assert torch.equal(run(samplers.normalised, clf, images, 3), images)


@pytest.mark.parametrize("sampler", [samplers.langevin, samplers.momentum])
def test_the_clamp_bounds_each_entry_of_the_gradient(toy, sampler) -> None:
    clf, images = classifier(), torch.full((6, 1, 4, 4), 0.5)
    options = {"step_size": 1.0, "noise_std": 0.0, "clip": False}
    bounded = run(sampler, clf, images, 1, clamp=0.05, **options)
    free = run(sampler, clf, images, 1, **options)
    torch.testing.assert_close(bounded - images, (free - images).clamp(-0.05, 0.05), atol=1e-6, rtol=0)
    assert (bounded - images).abs().max() < (free - images).abs().max()


def test_a_budget_keeps_chains_near_the_images_they_explain(toy) -> None:
    clf, images = classifier(), toy.images()
    moved = run(samplers.proximal, clf, images, 6, clean=images, budget=0.3)
    distance = (moved - images).flatten(1).norm(dim=1)
    assert (distance <= 0.3 + 1e-5).all() and (distance > 0.2).any()
    assert moved.min() >= 0 and moved.max() <= 1


@pytest.mark.parametrize("sampler", [getattr(samplers, name) for name in SAMPLERS.names()])
def test_samplers_descend_the_energy_inside_the_box(toy, sampler) -> None:
    clf, images = classifier(), toy.images()
    moved = run(sampler, clf, images, 8, step_size=0.005, seeds=SEEDS)
    assert moved.min() >= 0 and moved.max() <= 1
    assert (clf(moved).logsumexp(1) > clf(images).logsumexp(1)).all()


FACTORS = {
    "constant": [1.0] * 5,
    "linear": [1.0, 0.8, 0.6, 0.4, 0.2],
    "cosine": [(1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)],
}


@pytest.mark.parametrize(("steps_fall", "noise_falls"), [("linear", "cosine"), ("cosine", "constant")])
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_step_and_noise_follow_their_schedules(toy, name: str, steps_fall: str, noise_falls: str) -> None:
    clf, x, velocity = classifier(), toy.images(), torch.zeros(6, 1, 4, 4)
    for step, (size, std) in enumerate(zip(FACTORS[steps_fall], FACTORS[noise_falls], strict=True)):
        here = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-clf(here).logsumexp(1).sum(), here)
        gradient = gradient.clamp(-0.5, 0.5)
        if name == "normalised":
            gradient = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        velocity = (0.8 * velocity if name == "momentum" else 0.0) - 0.1 * size * gradient
        x = (x + velocity + 0.02 * std * noise.normal(SEEDS, step + 1, (1, 4, 4))).clamp(0, 1)
    options: dict[str, Any] = {"step_schedule": steps_fall, "noise_schedule": noise_falls, "clamp": 0.5}
    found = run(
        SAMPLERS.get(name), clf, toy.images(), 5, step_size=0.1, noise_std=0.02, seeds=SEEDS, **options
    )
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)


def test_a_linear_schedule_ends_before_zero_and_an_unknown_one_is_an_error(toy) -> None:
    clf = classifier()
    still = run(
        samplers.langevin, clf, toy.images(), 1, seeds=SEEDS, step_schedule="linear", noise_schedule="cosine"
    )
    assert torch.equal(still, run(samplers.langevin, clf, toy.images(), 1, seeds=SEEDS))
    with pytest.raises(ConfigError, match=r"step_schedule='linaer' is unknown.*Did you mean 'linear'"):
        run(samplers.langevin, clf, toy.images(), 1, seeds=SEEDS, step_schedule="linaer")
