"""High-energy PGD: what it climbs, and what becomes of the energy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trilemma import attacks, energies
from trilemma.errors import ConfigError, ImageError
from trilemma.threat import NORMS, Threat
from trilemma.walks import objectives

RADIUS = {"linf": 0.1, "l2": 0.6}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_gradient_of_the_objective_is_that_of_its_formula_by_finite_differences(toy) -> None:
    clf, labels, gamma, h = toy.mlp(), toy.labels(), 1.5, 1e-6
    images = toy.images().requires_grad_()
    value, _ = objectives.high_energy(clf, labels, gamma)(images, torch.arange(6))
    (gradient,) = torch.autograd.grad(value.sum(), images)

    def formula(x: torch.Tensor) -> np.ndarray:
        f = toy.logits64(clf, x)
        lse = np.log(np.exp(f).sum(1))
        value: np.ndarray = (lse - f[np.arange(6), labels.numpy()]) + gamma * -lse
        return value

    for pixel in np.ndindex(1, 4, 4):
        shift = torch.zeros(6, 1, 4, 4, dtype=torch.float64)
        shift[:, *pixel] = h
        x = images.detach().double()
        slope = (formula(x + shift) - formula(x - shift)) / (2 * h)
        np.testing.assert_allclose(gradient[:, *pixel], slope, atol=1e-4)


def test_the_walk_follows_its_formula(toy) -> None:
    """Two steps of an eighth of the radius from the start that the seed gives."""
    clf, images, labels, threat = toy.mlp(), toy.images(), toy.labels(), Threat("linf", 0.1)
    x = attacks.he_pgd(clf, images, labels, threat, 0, generator=generator())
    assert threat.contains(x, images).all() and (x != images).flatten(1).any(1).all()
    for _ in range(2):
        x.requires_grad_()
        f = clf(x)
        joint, marginal = -f.gather(1, labels[:, None]), -f.logsumexp(1)
        (gradient,) = torch.autograd.grad(joint.sum() + 0.5 * marginal.sum(), x)
        x = (x.detach() + 0.1 / 8 * gradient.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    reached = attacks.he_pgd(clf, images, labels, threat, 2, generator=generator())
    torch.testing.assert_close(reached, x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_without_the_energy_it_is_pgd(toy, norm: str) -> None:
    arguments = toy.mlp(), toy.images(), toy.labels(), Threat(norm, RADIUS[norm]), 4, 0.02
    plain = attacks.pgd(*arguments, generator=generator())
    assert torch.equal(attacks.he_pgd(*arguments, gamma=0.0, generator=generator()), plain)
    assert not torch.equal(attacks.he_pgd(*arguments, generator=generator()), plain)


@pytest.mark.parametrize("norm", NORMS)
def test_it_ends_above_the_energy_of_pgd_and_of_the_images_and_raises_the_loss(toy, norm: str) -> None:
    clf, images = toy.mlp(), toy.images(40)
    labels = clf(images).argmax(1)
    arguments = clf, images, labels, Threat(norm, RADIUS[norm]), 20, RADIUS[norm] / 8
    low, high = (attack(*arguments, generator=generator()) for attack in (attacks.pgd, attacks.he_pgd))
    energy = [energies.marginal_energy(clf(x)) for x in (low, images, high)]
    assert (energy[2] >= energy[0] - 1e-5).all() and energy[2].mean() > energy[0].mean() + 0.05
    assert (energy[2] - energy[1]).mean() > 0 > (energy[0] - energy[1]).mean()
    # what it climbs is a compromise: the loss of most images rises, not of all
    loss = [energies.cross_entropy(clf(x), labels) for x in (images, high)]
    assert loss[1].mean() > 1.5 * loss[0].mean() and (loss[1] > loss[0]).float().mean() > 0.75


def test_at_8_255_the_step_is_1_255(toy) -> None:
    arguments = toy.mlp(), toy.images(), toy.labels(), Threat("linf", "8/255"), 3
    assert torch.equal(
        attacks.he_pgd(*arguments, generator=generator()),
        attacks.he_pgd(*arguments, 1 / 255, generator=generator()),
    )


def test_arguments_that_do_not_fit_are_named(toy) -> None:
    with pytest.raises(ConfigError, match=r"pgd: steps=-1; must be at least 0"):
        attacks.he_pgd(toy.mlp(), toy.images(), toy.labels(), Threat("linf", 0.1), -1)
    with pytest.raises(ImageError, match=r"labels: values 3\.\.3"):
        attacks.he_pgd(toy.mlp(), toy.images(), torch.full((6,), 3), Threat("linf", 0.1))
