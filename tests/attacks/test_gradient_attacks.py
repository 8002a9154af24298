"""FGSM and PGD: properties that hold for every image, radius and seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilemma import attacks, energies
from trilemma.errors import ConfigError, ImageError
from trilemma.threat import NORMS, Threat

few = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
norms = st.sampled_from(NORMS)
radii = st.floats(0.005, 1.0)
seeds = st.integers(0, 999)
RADIUS = {"linf": 0.1, "l2": 0.6}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@few
@given(norm=norms, radius=radii, seed=seeds, step=st.floats(0.001, 3.0), steps=st.integers(0, 4))
def test_pgd_stays_inside_ball_and_box(toy, norm, radius, seed, step, steps) -> None:
    threat, images = Threat(norm, radius), toy.images(seed=seed).round(decimals=1)
    starred = attacks.pgd(toy.mlp(), images, toy.labels(), threat, steps, step, generator=generator(seed))
    assert threat.contains(starred, images).all()
    assert starred.dtype == images.dtype and starred.shape == images.shape and not starred.requires_grad


@few
@given(norm=norms, radius=radii, seed=seeds)
def test_fgsm_stays_inside_and_moves_by_the_radius(toy, norm, radius, seed) -> None:
    threat, images = Threat(norm, radius), toy.images(seed=seed)
    starred = attacks.fgsm(toy.mlp(), images, toy.labels(), threat)
    assert threat.contains(starred, images).all()
    if norm == "linf":  # every pixel goes the whole radius or to the edge of the box
        whole = ((starred - images).abs() - threat.epsilon).abs() < 1e-5
        assert (whole | (starred == 0) | (starred == 1)).all()


@few
@given(norm=norms, radius=st.floats(0.02, 0.6), seed=seeds)
def test_more_restarts_are_never_weaker(toy, norm, radius, seed) -> None:
    clf, threat, images, labels = toy.mlp(), Threat(norm, radius), toy.images(12, seed=seed), toy.labels(12)
    verdicts, losses = [], []
    for restarts in (1, 2, 4):
        starred = attacks.pgd(clf, images, labels, threat, 2, restarts=restarts, generator=generator(seed))
        logits = clf(starred)
        verdicts.append(logits.argmax(1) != labels)
        losses.append(energies.cross_entropy(logits, labels))
    for fewer, more in ((0, 1), (1, 2)):
        assert (verdicts[more] >= verdicts[fewer]).all()
        same = verdicts[more] == verdicts[fewer]
        assert (losses[more] >= losses[fewer] - 1e-5)[same].all()


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_raise_the_loss_and_break_images(toy, norm) -> None:
    clf, threat, images = toy.mlp(), Threat(norm, RADIUS[norm]), toy.images(64)
    labels = clf(images).argmax(1)
    clean, single = (
        energies.cross_entropy(clf(x), labels) for x in (images, attacks.fgsm(clf, images, labels, threat))
    )
    starred = clf(attacks.pgd(clf, images, labels, threat, 20, generator=generator()))
    multiple = energies.cross_entropy(starred, labels)
    for attacked in (single, multiple):
        assert (attacked > clean).float().mean() > 0.95 and attacked.mean() > clean.mean() + 0.3
    assert multiple.mean() >= single.mean() - 1e-3
    assert (starred.argmax(1) != labels).float().mean() > 0.3


@pytest.mark.parametrize("norm", NORMS)
def test_the_targeted_attack_drives_to_its_target(toy, norm) -> None:
    clf, images = toy.mlp(), toy.images(30)
    labels = clf(images).argmax(1)
    targets = (labels + 1) % 3
    options = {"steps": 40, "target_labels": targets, "generator": generator()}
    starred = clf(attacks.pgd(clf, images, labels, Threat(norm, 5 * RADIUS[norm]), **options))
    assert (starred.argmax(1) == targets).float().mean() > 0.9
    near = clf(attacks.pgd(clf, images, labels, Threat(norm, RADIUS[norm]), restarts=2, **options))
    before, after = (energies.cross_entropy(logits, targets) for logits in (clf(images), near))
    assert (after < before).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("restarts", [1, 3])
def test_the_same_generator_gives_the_same_images_in_any_batches(toy, norm, restarts: int) -> None:
    clf, threat, images, labels = toy.mlp(), Threat(norm, RADIUS[norm]), toy.images(8), toy.labels(8)

    def run(source, part=slice(None)):
        return attacks.pgd(clf, images[part], labels[part], threat, 4, restarts=restarts, generator=source)

    whole = run(generator())
    assert torch.equal(run(generator()), whole)
    assert not torch.equal(run(generator(1)), whole)
    if restarts == 1:  # one draw of seeds per call
        one = generator()
        parts = torch.cat([run(one, slice(k, k + 3)) for k in (0, 3, 6)])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_pgd_follows_its_formula(toy) -> None:
    clf, images, labels, threat = toy.mlp(), toy.images(), toy.labels(), Threat("linf", 0.1)
    x = images.clone()
    for _ in range(3):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(
            torch.nn.functional.cross_entropy(clf(x), labels, reduction="sum"), x
        )
        x = (x.detach() + 0.04 * gradient.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    starred = attacks.pgd(clf, images, labels, threat, 3, 0.04, random_start=False)
    torch.testing.assert_close(starred, x, atol=1e-6, rtol=0)
    one = attacks.fgsm(clf, images, labels, threat)
    torch.testing.assert_close(one, attacks.pgd(clf, images, labels, threat, 1, 0.1, random_start=False))


def test_without_step_size_the_step_is_a_quarter_of_the_radius(toy) -> None:
    arguments = toy.mlp(), toy.images(), toy.labels(), Threat("linf", "8/255"), 3
    assert torch.equal(
        attacks.pgd(*arguments, generator=generator()),
        attacks.pgd(*arguments, 2 / 255, generator=generator()),
    )


def test_no_steps_give_the_random_start_or_the_image(toy) -> None:
    clf, images, labels, threat = toy.mlp(), toy.images(), toy.labels(), Threat("linf", 0.1)
    assert torch.equal(attacks.pgd(clf, images, labels, threat, 0, random_start=False), images)
    start = attacks.pgd(clf, images, labels, threat, 0, generator=generator())
    assert threat.contains(start, images).all() and (start != images).flatten(1).any(1).all()


def test_channels_last_images_are_attacked_the_same_way(toy) -> None:
    clf, images = toy.conv(shape=(3, 4, 4)).eval(), toy.images(shape=(3, 4, 4))
    arguments = toy.labels(), Threat("linf", 0.1), 3
    plain = attacks.pgd(clf, images, *arguments, generator=generator())
    clf.to(memory_format=torch.channels_last)
    last = attacks.pgd(clf, images.to(memory_format=torch.channels_last), *arguments, generator=generator())
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=0)


def test_half_precision_images_are_refused_because_the_ball_would_be_too_coarse(toy) -> None:
    with pytest.raises(ImageError, match=r"torch.float16 given; pass a float32 tensor"):
        attacks.pgd(toy.mlp(), toy.images().half(), toy.labels(), Threat("linf", "1/255"))


def test_no_images_are_no_trouble(toy) -> None:
    nothing = torch.empty(0, 1, 4, 4), torch.empty(0, dtype=torch.int64)
    for norm in NORMS:
        assert attacks.pgd(toy.mlp(), *nothing, Threat(norm, 0.1), 2, restarts=2).shape == (0, 1, 4, 4)
        assert attacks.fgsm(toy.mlp(), *nothing, Threat(norm, 0.1)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(6)}, r"labels: torch.float32 given; pass one class number per image, int64"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"shape \[5\] given for 6 images"),
        ({"labels": torch.full((6,), 3)}, r"labels: values 3..3, but classes are 0..2"),
        ({"target_labels": torch.full((6,), -1)}, r"target_labels: values -1..-1, but classes are 0..2"),
        ({"images": torch.full((6, 1, 4, 4), 2.0)}, r"outside \[0, 1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(toy, change, message: str) -> None:
    arguments = {"images": toy.images(), "labels": toy.labels(), "threat": Threat("linf", 0.1)} | change
    with pytest.raises(ImageError, match=message):
        attacks.pgd(toy.mlp(), **arguments)


def test_impossible_counts_are_refused(toy) -> None:
    impossible: dict[str, Any] = {"steps=-1; must be at least 0": -1, "restarts=0; must be at least 1": 0}
    for message, value in impossible.items():
        with pytest.raises(ConfigError, match=message):
            attacks.pgd(
                toy.mlp(),
                toy.images(),
                toy.labels(),
                Threat("linf", 0.1),
                **{message.partition("=")[0]: value},
            )
