"""What every registered attack and sampler must hold."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from trilemma import noise
from trilemma.attacks.autoattack import AutoAttackResult
from trilemma.classifier.contexts import inner_loop
from trilemma.config.registry import ATTACKS, SAMPLERS
from trilemma.threat import NORMS, Threat
from trilemma.walks import objectives


def attack(name: str, clf, images, labels, threat, seed: int = 0):
    run = ATTACKS.get(name)
    takes = inspect.signature(run).parameters
    options: dict[str, Any] = (
        {"generator": torch.Generator().manual_seed(seed)} if "generator" in takes else {}
    )
    options |= {"queries": 100} if "queries" in takes else {}
    options |= {"attacks": ("apgd-ce", "fab-t"), "progress": False} if "attacks" in takes else {}
    found = run(clf, images, labels, threat, **options)
    return found.adversarial if isinstance(found, AutoAttackResult) else found


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ATTACKS.names())
def test_an_attack_stays_inside_and_leaves_everything_as_it_was(toy, name: str, norm: str) -> None:
    clf, images, labels = toy.conv(dropout=0.3, shape=(3, 4, 4)), toy.images(shape=(3, 4, 4)), toy.labels()
    threat, before = (
        Threat(norm, 0.2),
        [value.clone() for value in (*clf.buffers(), *clf.parameters(), images)],
    )
    modes = [module.training for module in clf.modules()]
    starred = attack(name, clf, images, labels, threat)
    assert threat.contains(starred, images).all()
    assert starred.shape == images.shape and starred.dtype == torch.float32 and not starred.requires_grad
    after = (*clf.buffers(), *clf.parameters(), images)
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))
    assert [module.training for module in clf.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in clf.parameters())


@pytest.mark.parametrize("name", ATTACKS.names())
def test_an_attack_repeats_with_its_seed_and_lowers_accuracy(toy, name: str) -> None:
    clf, images = toy.mlp(), toy.images(40)
    labels = clf(images).argmax(1)
    starred = attack(name, clf, images, labels, Threat("linf", 0.15))
    assert torch.equal(attack(name, clf, images, labels, Threat("linf", 0.15)), starred)
    assert (clf(starred).argmax(1) != labels).float().mean() > 0.3


def sample(name: str, clf, images, seeds, **options):
    with inner_loop(clf):
        return SAMPLERS.get(name)(clf, images, objectives.marginal_energy(clf), 5, seeds=seeds, **options)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_sampler_stays_in_the_box_repeats_and_does_not_look_at_its_neighbours(toy, name: str) -> None:
    clf, images = toy.mlp(), toy.images(8)
    seeds = noise.image_seeds(8, torch.Generator().manual_seed(0))
    moved = sample(name, clf, images, seeds)
    assert moved.min() >= 0 and moved.max() <= 1 and moved.shape == images.shape and not moved.requires_grad
    assert torch.equal(sample(name, clf, images, seeds), moved)
    parts = [sample(name, clf, i, s) for i, s in zip(images.split(3), seeds.split(3), strict=True)]
    torch.testing.assert_close(torch.cat(parts), moved, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_samplers_are_called_alike(name: str) -> None:
    common = ["clf", "images", "energy", "steps", "step_size", "noise_std", "clamp", "seeds"]
    assert list(inspect.signature(SAMPLERS.get(name)).parameters)[: len(common)] == common
