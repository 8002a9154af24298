"""A user's attack is put to the test: its ball, its units, its strength."""

from __future__ import annotations

import pytest
import torch

from trilemma import Threat
from trilemma.attacks import fgsm, pgd
from trilemma.errors import ConfigError, ImageError
from trilemma.evaluation.lint import lint

L2 = Threat("l2", "1")


def names(clf, few, attack, threat=None):
    return [finding.name for finding in lint(clf, few[0], few[1], threat=threat, attack=attack)]


def scaled(factor):
    """PGD with ``factor`` times the radius it was asked for."""
    return lambda clf, x, y, threat: pgd(clf, x, y, Threat(threat.norm, threat.epsilon * factor), 10)


@pytest.mark.parametrize("threat", [None, Threat("linf", "0.05"), L2])
@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_an_honest_attack_is_not_accused(kind, threat, few, request):
    clf = request.getfixturevalue(kind)
    for attack in (pgd, fgsm) if kind == "robust" else (pgd,):
        found = names(clf, few, attack, threat)
        assert [name for name in found if name not in ("attack-too-weak",)] == []
    assert names(clf, few, pgd, threat) == []


def test_an_attack_that_ignores_its_budget(standard, few):
    def unprojected(clf, x, y, threat):
        return x + 3 * threat.epsilon * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))

    found = lint(standard, *few, attack=unprojected)
    assert found[0].name == "budget-ignored"
    assert found[0].count == 64
    assert "up to 3 radii away and span [" in found[0].seen
    some = lint(standard, *few, attack=lambda clf, x, y, threat: torch.cat([1 - x[:3], x[3:]]))
    assert [(f.name, f.count) for f in some if f.name == "budget-ignored"] == [("budget-ignored", 3)]
    assert "budget-ignored" in names(standard, few, lambda clf, x, y, threat: x * torch.nan)


@pytest.mark.parametrize("threat", [None, L2])
def test_a_radius_in_minus_one_to_one(standard, few, threat):
    assert names(standard, few, scaled(2), threat) == ["budget-ignored", "radius-units"]
    assert "radius-units" in names(standard, few, scaled(0.5), threat)


def test_adversarial_images_in_minus_one_to_one(standard, few):
    def attack(clf, x, y, threat):
        return pgd(clf, x, y, threat, 10) * 2 - 1

    assert names(standard, few, attack) == ["budget-ignored", "radius-units"]


def test_an_attack_in_units_of_normalised_images(standard, few):
    assert "radius-units" in names(standard, few, scaled(float(standard.std)))


def test_an_attack_that_is_weaker_than_ten_steps_of_pgd(standard, few):
    assert names(standard, few, lambda clf, x, y, threat: x) == ["attack-too-weak"]


def test_what_an_attack_must_give(standard, few):
    with pytest.raises(ImageError, match=r"returned \[50, 1, 8, 8\]; return adversarial images \[64"):
        lint(standard, *few, attack=lambda clf, x, y, threat: x[:50])
    with pytest.raises(ConfigError, match="needs a threat"):
        lint(standard.network, *few, attack=pgd)
