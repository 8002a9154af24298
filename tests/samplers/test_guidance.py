"""Energies against NumPy in float64, gradients against finite differences, repulsion, and statistics of logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trilemma import samplers
from trilemma.classifier.classifier import Classifier
from trilemma.config.chains import ENERGIES
from trilemma.errors import ConfigError
from trilemma.samplers.guidance import (
    energy_objective,
    logit_statistics,
    repelled,
    with_statistics,
)
from trilemma.walks.walk import input_gradient

EVERYONE = torch.arange(6)


class Exact(Classifier):
    """A classifier whose logits keep the type of the images: float64, for finite differences."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((images - 0.5) / 0.25)
        return logits


def guided(toy) -> Classifier:
    """A classifier in float64 with statistics of the toy's training images."""
    clf = with_statistics(toy.mlp(), "mahalanobis", True, toy.image_set(per_class=20)).double()
    clf.__class__ = Exact
    return clf


def numpy_energies(toy, clf: Classifier, images: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    f, y = toy.logits64(clf, images), labels.numpy()
    stats = {name: value.double().numpy() for name, value in clf.statistics.items()}
    joint, marginal = -f[np.arange(len(y)), y], -np.log(np.exp(f).sum(1))
    shift = f - stats["logit_mean"][y]
    precision = [np.linalg.inv(stats["logit_covariance"][k] + 1e-3 * np.eye(3)) for k in y]
    return {
        "joint": joint,
        "marginal": marginal,
        "ce": joint - marginal,
        "reference": (joint - stats["energy_mean"][y]) ** 2,
        "mahalanobis": np.array([d @ p @ d for d, p in zip(shift, precision, strict=True)]),
    }


def test_each_energy_is_its_formula_in_numpy(toy) -> None:
    clf, labels, images = guided(toy), toy.labels(), toy.images().double()
    wanted = numpy_energies(toy, clf, images, labels)
    assert set(wanted) == set(ENERGIES)
    for name, values in wanted.items():
        found, logits = energy_objective(clf, name, labels)(images, EVERYONE)
        np.testing.assert_allclose(found.detach().numpy(), values, rtol=1e-6)
        np.testing.assert_allclose(logits.detach().numpy(), toy.logits64(clf, images), rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_divides_the_logits_of_the_cross_entropy(toy, temperature: float) -> None:
    clf, labels, images = guided(toy), toy.labels(), toy.images().double()
    f = toy.logits64(clf, images) / temperature
    wanted = np.log(np.exp(f).sum(1)) - f[np.arange(6), labels.numpy()]
    found, _ = energy_objective(clf, "ce", labels, temperature)(images, EVERYONE)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "temperature", "diversity"),
    [
        *((name, None, 0.0) for name in ENERGIES),
        ("ce", 3.0, 0.0),
        ("joint", None, 5.0),
        ("mahalanobis", None, 2.0),
    ],
)
def test_the_gradient_of_each_energy_is_the_finite_difference(toy, name, temperature, diversity) -> None:
    """Of one image at a time: the other chains are fixed, as the repulsion regards them."""
    clf, labels, images = guided(toy), toy.labels(), toy.images().double()
    plain = energy_objective(clf, name, labels, temperature)

    def objective(moved: torch.Tensor) -> torch.Tensor:
        energy = repelled(plain, labels, diversity, images) if diversity else plain
        # chain 2 alone moves; the others stay where they started
        return energy(moved[2:3], torch.tensor([2]))[0]

    leaf = images.clone().requires_grad_()
    gradient = input_gradient(objective(leaf), leaf)[2].flatten()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = torch.zeros_like(images)
    step[2] = 1e-6 * direction.view(1, 4, 4)
    difference = (objective(images + step) - objective(images - step)).item() / 2e-6
    assert gradient @ direction == pytest.approx(difference, rel=1e-5)


def test_repulsion_is_the_mean_kernel_over_the_other_chains_of_the_class(toy) -> None:
    clf, images, labels = (
        toy.mlp().double(),
        toy.images(9).double(),
        torch.tensor([0, 0, 0, 1, 1, 2, 0, 1, 2]),
    )
    plain = energy_objective(clf, "joint", labels)
    index = torch.arange(9)
    found = repelled(plain, labels, 3.0, images)(images, index)[0] - plain(images, index)[0]
    x = images.flatten(1).numpy()
    for i in range(9):
        others = [j for j in range(9) if j != i and labels[j] == labels[i]]
        kernels = [math.exp(-((x[i] - x[j]) ** 2).sum() / (2 * 16 / 16)) for j in others]
        assert found[i].item() == pytest.approx(3.0 * np.mean(kernels), rel=1e-6)


def test_repulsion_spreads_the_chains_of_a_class(toy) -> None:
    clf, labels = toy.mlp(), torch.zeros(8, dtype=torch.int64)
    start = (0.5 + 0.05 * (toy.images(8) - 0.5)).clamp(0, 1)

    def spread(diversity: float) -> float:
        images = samplers.generate(
            clf, labels, start, "langevin", steps=20, step_size=0.02, noise_std=0.0, diversity=diversity
        )
        return float(torch.pdist(images.flatten(1)).mean())

    assert spread(30.0) > 1.5 * spread(0.0)


def test_repulsion_of_one_chain_per_class_is_refused(toy) -> None:
    with pytest.raises(ConfigError, match=r"diversity=1 .*every class has one; generate at least 2"):
        samplers.generate(toy.mlp(), toy.labels(3), toy.images(3), steps=1, diversity=1)


def test_statistics_are_those_of_each_class(toy) -> None:
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2  # class 2 has no image
    found = {name: value.double().numpy() for name, value in logit_statistics(logits, labels).items()}
    f = logits.double().numpy()
    for y, rows in ((0, f[0::2]), (1, f[1::2]), (2, f)):
        np.testing.assert_allclose(found["logit_mean"][y], rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found["logit_covariance"][y], np.cov(rows.T), rtol=1e-5)
    np.testing.assert_allclose(found["energy_mean"][:2], [-f[0::2, 0].mean(), -f[1::2, 1].mean()], rtol=1e-5)
    np.testing.assert_allclose(found["energy_std"][0], f[0::2, 0].std(ddof=1), rtol=1e-5)
    assert set(logit_statistics(torch.randn(4, 101), torch.arange(4))) == {"energy_mean", "energy_std"}


@pytest.mark.parametrize(("energy", "stop"), [("reference", False), ("mahalanobis", False), ("joint", True)])
def test_training_images_replace_statistics_that_a_classifier_lacks(toy, energy: str, stop: bool) -> None:
    clf, data = toy.mlp(), toy.image_set(per_class=20)

    def run(model: Classifier, **extra) -> torch.Tensor:
        seed = torch.Generator().manual_seed(0)
        return samplers.generate(
            model, toy.labels(), toy.images(), energy=energy, stop=stop, steps=3, generator=seed, **extra
        )

    found = run(clf, data=data)
    assert clf.statistics == {}
    assert torch.equal(found, run(with_statistics(clf, "mahalanobis", True, data)))
    with pytest.raises(ConfigError, match=r"of the training images, .* add the training images") as caught:
        run(clf)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 2.0}, "temperature=2.0; only the energy 'ce' has one, not 'joint'"),
        ({"energy": "ce", "temperature": 0}, "temperature=0; must be above 0"),
        ({"energy": "ce", "temperature": "hot"}, "temperature: 'hot' is not a number"),
        ({"diversity": -1}, "diversity=-1; must be at least 0"),
        ({"energy": "mahalanobi"}, "Did you mean 'mahalanobis'"),
        ({"step_schedule": "cosin"}, "step_schedule='cosin' is unknown.* Did you mean 'cosine'"),
        ({"noise_schedule": 2}, "noise_schedule=2 is unknown"),
    ],
)
def test_a_wrong_energy_setting_is_one_line(toy, change, message: str) -> None:
    arguments = {"start": toy.images(), "steps": 1} | change
    with pytest.raises(ConfigError, match=message) as caught:
        samplers.generate(toy.mlp(), toy.labels(), **arguments)
    assert "\n" not in str(caught.value)


def test_a_covariance_per_class_is_limited_to_100_classes(toy) -> None:
    with pytest.raises(ConfigError, match="limited to 100 classes; this classifier has 101"):
        energy_objective(toy.mlp(classes=101), "mahalanobis", toy.labels())
