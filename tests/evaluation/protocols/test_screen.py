"""``screen``: an estimate from above, cheap, and honest about what it is not."""

from __future__ import annotations

import pytest
import torch
from tests.reference_models import reference, verdicts

import trilemma
from trilemma.attacks.autoattack import STANDARD, autoattack
from trilemma.attacks.screen import screen_pool
from trilemma.config.presets import AUTOATTACK, SCREEN
from trilemma.config.registry import METHODS
from trilemma.errors import ConfigError, ImageError
from trilemma.evaluation.protocols.autoattack import refuse_single_step
from trilemma.threat import NORMS, Threat

RADIUS = {"linf": 0.05, "l2": 0.25}


@pytest.mark.parametrize("norm", NORMS)
def test_what_it_returns_is_what_its_verdicts_say(toy, norm: str) -> None:
    clf, images, threat = toy.mlp(classes=5), toy.images(20), Threat(norm, RADIUS[norm])
    labels = clf(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    starred = trilemma.attacks.screen(clf, images, labels, threat, generator=torch.Generator().manual_seed(0))
    assert threat.contains(starred, images).all()
    broken = clf(starred).argmax(1) != labels
    assert 1 < broken.sum() < 20
    assert torch.equal(starred[0], images[0]) and torch.equal(starred[~broken], images[~broken])
    row = trilemma.evaluate(clf, (images, labels), ["screen"], threat, lint=False)["screen"]
    assert abs(row["value"] - (~broken).float().mean().item()) <= 1 / 20  # another seed
    assert row["facts"]["attacked"] == 19 and set(row["facts"]["attacks"]) == set(SCREEN)


def test_an_image_that_stands_costs_less_than_a_tenth_of_what_autoattack_costs_it(toy) -> None:
    """Passes, each way, of one image that nothing breaks."""
    clf, images, threat = toy.mlp(classes=10, shape=(3, 4, 4)), toy.images(1, (3, 4, 4)), Threat("linf", 1e-6)
    labels = clf(images).argmax(1)
    pool = screen_pool(clf, images, labels, threat, 1, 0)
    assert pool.robust.all()
    short = sum(work.forwards + work.backwards for work in pool.work.values())
    work = autoattack(clf, images, labels, threat, attacks=STANDARD[:3], progress=False).work.values()
    whole = sum(one.forwards + one.backwards for one in work) + AUTOATTACK["square"].passes
    # Square's candidates that share a pass with an accepted one are discarded, and rejected ones not evaluated again.
    assert 259 < short < 659 * 1.2 and 10 * short < whole


def test_the_row_says_how_far_it_was_from_autoattack(toy) -> None:
    clf, images = toy.mlp(), toy.images()
    row = trilemma.evaluate(clf, (images, clf(images).argmax(1)), ["screen"], Threat(), lint=False)["screen"]
    assert row["facts"]["note"].startswith(
        "an estimate, not AutoAttack: on five reference networks it left 1 more image"
    )


def test_two_classes_have_one_target(toy) -> None:
    clf, images, threat = toy.mlp(classes=2), toy.images(8), Threat("linf", 0.3)
    labels = clf(images).argmax(1)
    assert (clf(trilemma.attacks.screen(clf, images, labels, threat)).argmax(1) != labels).any()


def test_single_step_training_is_refused_before_any_work(toy) -> None:
    clf, images = toy.mlp(), toy.images()
    for method in METHODS.names():
        clf.about = {"method": method, "attack_steps": 2}
        if METHODS.options(method).single_step:
            with pytest.raises(ConfigError, match=f"{method} with a single step.*use autoattack-standard"):
                refuse_single_step(clf)
        else:
            refuse_single_step(clf)
    clf.about = {"method": "pgd-at", "attack_steps": 1}
    with pytest.raises(ConfigError, match="pgd-at with a single step"):
        trilemma.evaluate(clf, (images, toy.labels()), ["clean", "screen"], Threat(), lint=False)
    for about in ({}, {"method": "somebody's own"}):
        clf.about = about
        refuse_single_step(clf)


def test_what_it_refuses(toy) -> None:
    with pytest.raises(ImageError, match="divide by 255"):
        trilemma.attacks.screen(toy.mlp(), toy.images() * 255, toy.labels(), Threat())
    with pytest.raises(ConfigError, match="batch_size: 0"):
        trilemma.attacks.screen(toy.mlp(), toy.images(), toy.labels(), Threat(), batch_size=0)


@pytest.mark.parametrize("name", ["cifar10_cnn_a_mix", "cifar10_wk_small_l2_36px"])
def test_on_a_reference_network_it_finds_what_autoattack_found(name: str) -> None:
    clf, images, labels, threat = reference(name, 40)
    record = verdicts(name)
    wanted = (record["clean"] & ~record["robust"])[:40].nonzero().squeeze(1)
    found = trilemma.attacks.screen(clf, images[wanted], labels[wanted], threat)
    assert (clf(found).argmax(1) != labels[wanted]).all()


def test_the_attacks_are_what_their_names_say() -> None:
    assert [(name, preset.attack, preset.settings) for name, preset in SCREEN.items()] == [
        ("apgd-ce-25", "apgd", {"loss": "ce", "steps": 25}),
        ("apgd-margin-t-25", "apgd", {"loss": "margin-targeted", "steps": 25, "targets": 4}),
        ("square-400", "square", {"queries": 400}),
    ]
    for table in (SCREEN, AUTOATTACK):
        assert len({preset.stream for preset in table.values()}) == len(table)
