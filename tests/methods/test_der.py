"""DER on top of any adversarial method, in its two forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.training.support import tiny

import trilemma
from trilemma import energies
from trilemma.methods import MethodState, Points
from trilemma.methods.der import Regularised

THREAT = trilemma.Threat("linf", 0.1)


def points(toy) -> Any:
    """Images whose pairs hold normal and abnormal examples alike."""
    return Points(toy.images(24, seed=0), toy.labels(24), adversarial=toy.images(24, seed=1))


def reference(toy, clf, at):
    """L_dE (margin 0) and the abnormal examples, in NumPy float64."""
    f, g = toy.logits64(clf, at.clean), toy.logits64(clf, at.adversarial)
    rows, y = np.arange(24), at.labels.numpy()
    marginal = -np.log(np.exp(f).sum(1)) + np.log(np.exp(g).sum(1))
    joint = -f[rows, y] + g[rows, y]
    loss_x, loss_s = (np.log(np.exp(a).sum(1)) - a[rows, y] for a in (f, g))
    return np.hypot(marginal, joint), loss_s < loss_x


def added(toy, name: str, clf, at, **der):
    """What the regulariser adds to the loss of the method alone."""
    base = trilemma.methods.create(name, THREAT).terms(clf, at, MethodState(0)).loss
    step = trilemma.methods.create(name, THREAT, regulariser={"name": "der"} | der).terms(
        clf, at, MethodState(0)
    )
    return (step.loss - base).item(), step


@pytest.mark.parametrize("name", ["pgd-at", "trades", "eb-jdat"])
def test_the_multi_step_form_adds_exactly_beta_times_the_mean(toy, name: str) -> None:
    clf, at = toy.mlp(), points(toy)
    if name == "eb-jdat":
        at = Points(at.clean, at.labels, at.adversarial, generated=toy.images(24, seed=3), data=at.clean)
        der: dict[str, Any] = {
            "regulariser": {"name": "der", "beta": 0.7, "margin": 0.3},
            "sampler": {"buffer_size": 0},
        }
        step, base = (
            trilemma.methods.create(name, THREAT, **extra).terms(clf, at, MethodState(0))
            for extra in (der, {})
        )
        extra = (step.loss - base.loss).item()
    else:
        extra, step = added(toy, name, clf, at, beta=0.7, margin=0.3)
    shift, _ = reference(toy, clf, at)
    wanted = np.maximum(shift - 0.3, 0).mean()
    np.testing.assert_allclose(extra, 0.7 * wanted, atol=1e-5)
    np.testing.assert_allclose(step.metrics["der"], wanted, rtol=1e-5)


def test_the_published_single_step_form_is_the_mean_over_the_whole_batch(toy) -> None:
    clf, at = toy.mlp(), points(toy)
    shift, abnormal = reference(toy, clf, at)
    assert 0 < abnormal.sum() < 24
    extra, _ = added(toy, "n-fgsm", clf, at, beta=2.0, average="batch")
    np.testing.assert_allclose(extra, 2 * (shift * abnormal).sum() / 24, atol=1e-5)


def test_the_default_is_the_mean_over_the_abnormal_examples_which_gives_each_the_same_weight(toy) -> None:
    clf, at = toy.mlp(), points(toy)
    shift, abnormal = reference(toy, clf, at)
    extra, _ = added(toy, "fgsm", clf, at, beta=2.0)
    np.testing.assert_allclose(extra, 2 * shift[abnormal].mean(), atol=1e-5)


@pytest.mark.parametrize("average", ["batch", "abnormal"])
def test_without_abnormal_examples_the_single_step_form_adds_nothing(toy, average: str) -> None:
    clf, at = toy.mlp(), points(toy)
    same = Points(at.clean, at.labels, adversarial=at.clean)
    extra, step = added(toy, "fgsm", clf, same, average=average)
    assert extra == 0
    step.loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in clf.parameters())


def test_abnormal_by_the_joint_energy_are_those_whose_true_logit_rose(toy) -> None:
    clf, at = toy.mlp(), points(toy)
    shift, abnormal = reference(toy, clf, at)
    f, g, rows, y = (
        toy.logits64(clf, at.clean),
        toy.logits64(clf, at.adversarial),
        np.arange(24),
        at.labels.numpy(),
    )
    rose = g[rows, y] > f[rows, y]
    assert (rose != abnormal).any()
    extra, _ = added(toy, "fgsm", clf, at, beta=1.0, abnormal_by="joint-energy")
    np.testing.assert_allclose(extra, shift[rose].mean(), atol=1e-5)


def test_the_gradient_through_x_alone_can_be_left_out(toy) -> None:
    clf, at = toy.mlp(), points(toy)
    found = {}
    for gradient in ("both", "adversarial"):
        clean = at.clean.clone().requires_grad_()
        starred = at.adversarial.clone().requires_grad_()
        _, step = added(toy, "fgsm", clf, Points(clean, at.labels, starred), beta=3.0, gradient=gradient)
        found[gradient] = torch.autograd.grad(step.loss, [clean, starred], allow_unused=True)
    assert found["both"][0].abs().sum() > 0 and found["adversarial"][0] is None
    assert torch.equal(found["both"][1], found["adversarial"][1])


def test_in_eval_mode_the_penalty_is_that_of_the_running_statistics(toy) -> None:
    at, penalties = points(toy), {}
    for mode in ("train", "eval"):
        clf = toy.conv().train()
        plain, regularised = toy.conv().train(), {"name": "der", "mode": mode, "beta": 2.0}
        step = trilemma.methods.create("fgsm", THREAT, regulariser=regularised).terms(clf, at, MethodState(0))
        trilemma.methods.create("fgsm", THREAT).terms(plain, at, MethodState(0))
        assert all(module.training for module in clf.modules())
        for (name, buffer), (_, alone) in zip(clf.named_buffers(), plain.named_buffers(), strict=True):
            assert torch.equal(buffer, alone), f"{name}: the penalty changed it"
        penalties[mode] = step.metrics["der"].item()
        with torch.no_grad():
            clean, adversarial = (clf.eval().logits(images) for images in (at.clean, at.adversarial))
    wanted = energies.delta_energy_penalty(clean, adversarial, at.labels)
    wanted = wanted[energies.abnormal(clean, adversarial, at.labels)]
    assert penalties["eval"] == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert penalties["train"] != pytest.approx(penalties["eval"], rel=1e-2)


@pytest.mark.parametrize(
    ("name", "form", "single"), [("pgd-at", "single-step", True), ("n-fgsm", "multi-step", False)]
)
def test_the_form_can_be_chosen(toy, name: str, form: str, single: bool) -> None:
    clf, at = toy.mlp(), points(toy)
    shift, abnormal = reference(toy, clf, at)
    extra, _ = added(toy, name, clf, at, beta=1.0, form=form)
    np.testing.assert_allclose(extra, (shift[abnormal] if single else shift).mean(), atol=1e-5)


@pytest.mark.parametrize("name", ["n-fgsm", "pgd-at", "jeat"])
def test_the_term_trains_through_clean_and_adversarial_images(toy, name: str) -> None:
    """A public implementation detaches every logit, and so trains without the term."""
    clf, at = toy.mlp(), points(toy)
    at = Points(at.clean.requires_grad_(), at.labels, at.adversarial.requires_grad_(), toy.images(24, seed=3))
    der = {"name": "der", "beta": 1.0, "form": "multi-step"}
    base, regularised = (
        trilemma.methods.create(name, THREAT, regulariser=regulariser).terms(clf, at, MethodState(0)).loss
        for regulariser in (None, der)
    )
    inputs = (at.clean, at.adversarial, *clf.parameters())
    for gradient in torch.autograd.grad(regularised - base, inputs):
        assert gradient.abs().sum() > 0


def test_inside_the_margin_the_loss_and_its_gradient_are_those_of_the_method(toy) -> None:
    clf, at = toy.mlp(), points(toy)
    extra, step = added(toy, "pgd-at", clf, at, margin=100.0)
    assert extra == 0
    base = trilemma.methods.create("pgd-at", THREAT).terms(clf, at, MethodState(0)).loss
    parameters = list(clf.parameters())
    pairs = zip(
        torch.autograd.grad(step.loss, parameters), torch.autograd.grad(base, parameters), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_added_clean_forward_is_seen_and_moves_no_statistics(toy) -> None:
    at = points(toy)
    buffers = []
    for regulariser in (None, {"name": "der"}):
        clf = toy.conv().train()
        step = trilemma.methods.create("pgd-at", THREAT, regulariser=regulariser).terms(
            clf, at, MethodState(0)
        )
        buffers.append([buffer.clone() for buffer in clf.buffers()])
    assert step.clean is not None and torch.equal(step.clean.images, at.clean)
    assert not step.clean.logits.requires_grad
    assert all(torch.equal(one, other) for one, other in zip(*buffers, strict=True))


def test_a_regularised_method_is_its_method_in_everything_else(toy) -> None:
    base, der = (
        trilemma.methods.create("eb-jdat", THREAT, sampler={"buffer_size": 6}, regulariser=regulariser)
        for regulariser in (None, {"name": "der"})
    )
    assert der.views == base.views and der.trains_on_adversarial
    assert der.attack == base.attack and der.sampler == base.sampler
    clf = toy.mlp()
    one, other = (
        method.points(clf, toy.batch(), method.init_state(clf, toy.image_set(), 0)) for method in (base, der)
    )
    for images, wanted in ((other.adversarial, one.adversarial), (other.generated, one.generated)):
        assert images is not None and wanted is not None and torch.equal(images, wanted)


@pytest.mark.parametrize(
    ("base", "options", "beta"),
    [
        ("fgsm", {}, 3.0),
        ("pgd-at", {}, 0.3),
        ("fgsm", {"form": "multi-step"}, 0.3),
        ("pgd-at", {"form": "single-step"}, 3.0),
        ("pgd-at", {"beta": 0.0}, 0.0),
    ],
)
def test_the_default_weight_is_that_of_the_form(base: str, options: dict[str, Any], beta: float) -> None:
    # In the saved configuration, which a later version may read with another default, and in a method made in Python.
    saved = tiny(base, regulariser={"name": "der", **options}).regulariser
    assert saved is not None and saved.beta == beta
    method = trilemma.methods.create(
        base, trilemma.Threat("linf", "8/255"), regulariser={"name": "der", **options}
    )
    assert isinstance(method, Regularised) and method.der.beta == beta
