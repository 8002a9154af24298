"""AutoAttack for random networks: expected accuracies in closed form, mean gradients, and repeatable randomness."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma import Classifier, Threat
from trilemma.attacks import apgd, autoattack_rand
from trilemma.attacks.autoattack_rand import FORWARDS, expected_correct
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.contexts import inner_loop, seeded
from trilemma.config.presets import EXPECTATION
from trilemma.errors import ConfigError

SIGMA, SCALE = 0.15, 2.0
CPU = torch.device("cpu")


class NoisyBrightness(nn.Module):
    """Class 1 is an image whose mean plus one draw of noise per image exceeds 1/2; class 2 and up are never chosen."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def forward(self, images: Tensor) -> Tensor:
        score = self.scale * (images.flatten(1).mean(1) - 0.5 + SIGMA * torch.randn(len(images)))
        others = [-10 - score.abs()] * (self.classes - 2)
        return torch.stack([-score, score, *others], dim=1)


def grey(count: int = 40) -> tuple[Tensor, Tensor]:
    """Flat images of brightness 0.3 to 0.7; every fifth is labelled wrongly."""
    levels = torch.linspace(0.3, 0.7, count)
    labels = (levels > 0.5).long()
    labels[::5] = 1 - labels[::5]
    return levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), labels


def chance_of_right(images: Tensor, labels: Tensor, shift: float) -> Tensor:
    distance = (images.flatten(1).mean(1).double() - 0.5) * (2 * labels - 1)
    chances: Tensor = torch.special.ndtr((distance - shift) / SIGMA)
    return chances


@pytest.mark.parametrize(("classes", "norm", "radius"), [(2, "linf", 0.1), (3, "l2", 0.2)])
def test_shares_are_the_chances_at_the_worst_point_of_the_ball(
    classes: int, norm: str, radius: float
) -> None:
    clf, (images, labels) = Classifier(NoisyBrightness(classes), classes), grey()
    threat = Threat(norm, radius)
    result = autoattack_rand(clf, images, labels, threat)
    assert threat.contains(result.adversarial, images).all()
    for shares, shift in (
        (result.clean, 0.0),
        (result.robust, 0.1),
    ):  # an L2 length of 0.2 is 0.1 in each of 4 pixels
        chances = chance_of_right(images, labels, shift)
        sigma = (chances * (1 - chances) / FORWARDS).sqrt()
        assert ((shares - chances).abs() < 4.5 * sigma + 0.011).all()
        assert (
            abs(float(shares.mean() - chances.mean())) < 4 * float(sigma.square().mean() / len(images)) ** 0.5
        )
    names = {"apgd-ce", "apgd-margin" if classes == 2 else "apgd-dlr"}
    assert set(result.attacked) == names and set(result.broken_by) <= {*names, None}


class Distracting(nn.Module):
    """The mean of the logits depends on the brightness, but each draw far more on a pattern of random sign."""

    def __init__(self) -> None:
        super().__init__()
        self.pattern = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, -1.0]))

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        score = 8 * (flat.mean(1) - 0.5) + 3 * float(torch.randn(())) * (flat - 0.5) @ self.pattern
        return torch.stack([-score, score], dim=1)


def test_the_mean_gradient_leads_further_than_that_of_one_pass() -> None:
    clf, (images, _) = Classifier(Distracting(), 2), grey()
    labels = (images[:, 0, 0, 0] > 0.5).long()
    shifts = []
    for expectation in (1, EXPECTATION):
        with seeded(0, CPU):
            found = apgd(
                clf, images, labels, Threat("linf", 0.05), steps=20, early_stop=False, expectation=expectation,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        # Towards the other class; 0.05 at most.
        shifts.append(float(((found - images).mean((1, 2, 3)) * (1 - 2 * labels)).mean()))
    assert shifts[1] > 0.04 > 2 * shifts[0]


def test_the_oracle_averages_values_logits_and_gradients_of_separate_passes() -> None:
    clf, (images, _) = Classifier(NoisyBrightness(3), 3), grey(7)
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf, batch_size=4, expectation=5)
        with seeded(3, CPU):
            value, logits, gradient = oracle.gradient(images, lambda z: z[:, 1].square())
        assert (oracle.forwards, oracle.backwards) == (35, 35)
        once = Oracle(clf, batch_size=4)
        with seeded(3, CPU):
            singles = [once.gradient(images, lambda z: z[:, 1].square()) for _ in range(5)]
        for mean, parts in zip((value, logits, gradient), zip(*singles, strict=True), strict=True):
            torch.testing.assert_close(mean, torch.stack(parts).mean(0))
        with seeded(3, CPU):
            without = oracle.values_and_logits(images, lambda z: z[:, 1].square())
        torch.testing.assert_close(without, (value, logits))


def test_a_network_that_is_not_random_is_sent_to_the_standard_protocol(toy) -> None:
    with pytest.raises(ConfigError, match=r"8 forward passes of 6 images agree.*use autoattack-standard"):
        trilemma.evaluate(
            toy.mlp(), (toy.images(6), toy.labels(6)), ["autoattack-rand"], Threat(), lint=False
        )


class LibraryNoise(nn.Module):
    """Draws from the default generators of torch, NumPy and Python."""

    def forward(self, images: Tensor) -> Tensor:
        noise = random.gauss(0, 1) + float(np.random.normal()) + float(torch.randn(()))
        score = images.flatten(1).mean(1) - 0.5 + 0.05 * noise
        return torch.stack([-score, score, score - 5], dim=1)


def test_the_same_seed_repeats_the_result_and_no_generator_is_left_changed(monkeypatch) -> None:
    # By the module's name: the function of that name stands in front of it.
    monkeypatch.setattr(sys.modules[autoattack_rand.__module__], "EXPECTATION", 2)
    clf, (images, labels) = Classifier(LibraryNoise(), 3), grey(6)
    numpy_state = str(np.random.get_state())
    states = torch.get_rng_state(), random.getstate()
    first, second = (autoattack_rand(clf, images, labels, Threat("linf", 0.02), seed=5) for _ in range(2))
    assert torch.equal(first.adversarial, second.adversarial) and torch.equal(first.robust, second.robust)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == numpy_state and random.getstate() == states[1]


def test_an_image_that_is_never_right_is_not_attacked_and_the_row_says_what_was_done() -> None:
    clf = Classifier(NoisyBrightness(3), 3)
    images, labels = grey(8)
    images[0], labels[0] = 1.0, 0
    rows = trilemma.evaluate(
        clf, (images, labels), ["autoattack-rand"], Threat("linf", 0.05), lint=False, batch_size=8
    )
    row = rows["autoattack-rand"]
    assert row["quantity"] == "accuracy" and row["facts"]["attacks"]["apgd-ce"]["attacked"] == 7
    assert 0 <= row["lower"] <= row["value"] <= row["upper"] <= 1 and row["value"] < row["facts"]["clean"]
    assert (row["facts"]["forwards"], row["facts"]["expectation"], row["facts"]["batch_size"]) == (100, 20, 8)
    assert row["facts"]["note"].startswith("expected accuracy over 100 forward passes")


def test_expected_accuracy_is_the_share_of_right_passes() -> None:
    clf, (images, labels) = Classifier(NoisyBrightness(3), 3), grey(5)
    with seeded(0, CPU):
        shares = expected_correct(clf, images, labels, 3)
    with seeded(0, CPU):
        passes = [clf(images).argmax(1) == labels for _ in range(3)]
    torch.testing.assert_close(shares, torch.stack(passes).float().mean(0))
