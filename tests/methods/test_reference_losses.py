"""Each method's loss against its formula in NumPy float64, from logits of a network written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import trilemma
from trilemma.config.registry import METHODS
from trilemma.methods import MethodState, Points

THREAT = trilemma.Threat("linf", 0.1)
CHAIN = {"buffer_size": 12, "steps": 2}


def lse(f):
    return np.log(np.exp(f).sum(1))


def ce(f, y):
    p = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(f)), y])


def kl(f, g):
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (f, g))
    return (p * np.log(p / q)).sum(1)


def delta(f, g, y):
    """(dE(x), dE(x, y)), clean minus adversarial."""
    rows = np.arange(len(f))
    return -lse(f) + lse(g), -f[rows, y] + g[rows, y]


def aaer(f_start, f_starred, y, weight, gap, spread):
    """CE(x*) plus the penalty on examples whose loss fell; both groups have to be there."""
    fall = ce(f_start, y) - ce(f_starred, y)
    moved, bad = ((f_starred - f_start) ** 2).sum(1), fall > 0
    assert 0 < bad.sum() < len(y)
    excess = max(moved[bad].mean() - moved[~bad].mean(), 0)
    return ce(f_starred, y).mean() + weight * bad.mean() * (gap * fall[bad].mean() + spread * excess)


def points(toy, **change) -> Points:
    """Different images in every role, so that no two can be mistaken for each other; a start is the data of aaer."""
    images = {
        name: toy.images(seed=k) for k, name in enumerate(("clean", "adversarial", "generated", "data"))
    }
    return Points(
        labels=toy.labels(),
        **{**images, "extra": {"start": images["data"], "steps": torch.tensor(0)}, **change},
    )


def softmax(f):
    return np.exp(f) / np.exp(f).sum(1, keepdims=True)


def mart(x, s, y, beta):
    """The boosted cross-entropy of x*, plus the KL weighed by 1 - p_y(x), with the release's constants."""
    total = []
    for p, q, label in zip(softmax(x), softmax(s), y, strict=True):
        rival = max(q[k] for k in range(len(q)) if k != label)
        boosted = -np.log(q[label]) - np.log(1.0001 - rival + 1e-12)
        total.append(boosted + beta * (p * np.log(p / q)).sum() * (1.0000001 - p[label]))
    return np.mean(total)


def weat(x, s, classified, y, beta=6.0):
    weight = 1 / np.log(1 + np.exp(np.abs(-lse(x))))
    return (weight * (ce(classified, y) + beta * kl(x, s))).mean()


FORMULAS: dict[str, Any] = {
    "standard": ({}, lambda x, s, g, d, y: ce(x, y).mean()),
    "pgd-at": ({}, lambda x, s, g, d, y: ce(s, y).mean()),
    "n-fgsm": ({}, lambda x, s, g, d, y: ce(s, y).mean()),
    "fgsm": ({}, lambda x, s, g, d, y: ce(s, y).mean()),
    "fgsm-rs": ({}, lambda x, s, g, d, y: ce(s, y).mean()),
    "free-at": ({}, lambda x, s, g, d, y: ce(s, y).mean()),
    "aaer": ({}, lambda x, s, g, d, y: aaer(d, s, y, 1, 2.5, 1.5)),
    "aaer-n": ({"base": "n-fgsm"}, lambda x, s, g, d, y: aaer(d, s, y, 1, 1.5, 0.15)),
    "aaer-own": (
        {"weight": 0.5, "gap": 0.3, "spread": 2.0},
        lambda x, s, g, d, y: aaer(d, s, y, 0.5, 0.3, 2.0),
    ),
    "trades": ({}, lambda x, s, g, d, y: ce(x, y).mean() + 6 * kl(x, s).mean()),
    "trades-2": ({"beta": 2.0}, lambda x, s, g, d, y: ce(x, y).mean() + 2 * kl(x, s).mean()),
    "mart": ({}, lambda x, s, g, d, y: mart(x, s, y, 5.0)),
    "mart-6": ({"beta": 6.0}, lambda x, s, g, d, y: mart(x, s, y, 6.0)),
    "weat-nat": ({}, lambda x, s, g, d, y: weat(x, s, x, y)),
    "weat-nat-2": ({"beta": 2.0}, lambda x, s, g, d, y: weat(x, s, x, y, 2.0)),
    "weat-adv": ({}, lambda x, s, g, d, y: weat(x, s, s, y)),
    "weat-adv-7": ({"beta": 7.0}, lambda x, s, g, d, y: weat(x, s, s, y, 7.0)),
    "sada-jem": ({}, lambda x, s, g, d, y: -lse(d).mean() + lse(g).mean() + ce(x, y).mean()),
    "sada-jem-3": (
        {"generative": 3.0},
        lambda x, s, g, d, y: 3 * (-lse(d).mean() + lse(g).mean()) + ce(x, y).mean(),
    ),
    "jem": ({}, lambda x, s, g, d, y: -lse(d).mean() + lse(g).mean() + ce(x, y).mean()),
    "jem-penalty": (
        {"generative": 0.5, "energy_penalty": 0.1},
        lambda x, s, g, d, y: (
            0.5 * (-lse(d).mean() + lse(g).mean())
            + ce(x, y).mean()
            + 0.1 * ((lse(d) ** 2).mean() + (lse(g) ** 2).mean())
        ),
    ),
    "jem++": ({}, lambda x, s, g, d, y: -lse(d).mean() + lse(g).mean() + ce(x, y).mean()),
    "prejeat": ({}, lambda x, s, g, d, y: ce(s, y).mean()),
    "jeat": ({}, lambda x, s, g, d, y: ce(s, y).mean() - lse(s).mean() + lse(g).mean()),
    "jeat-2": (
        {"generative": 2.0},
        lambda x, s, g, d, y: ce(s, y).mean() + 2 * (-lse(s).mean() + lse(g).mean()),
    ),
    "jeat-penalty": (
        {"generative": 0.5, "energy_penalty": 0.1},
        lambda x, s, g, d, y: (
            ce(s, y).mean()
            + 0.5 * (-lse(s).mean() + lse(g).mean())
            + 0.1 * ((lse(s) ** 2).mean() + (lse(g) ** 2).mean())
        ),
    ),
    "dat": ({}, lambda x, s, g, d, y: (
        ce(s, y).mean() + 0.5 * np.log(1 + np.exp(-lse(d))).mean() + 0.5 * np.log(1 + np.exp(lse(g))).mean()
    )),
    "eb-jdat": (
        {},
        lambda x, s, g, d, y: (
            -lse(d).mean() + lse(g).mean() + np.hypot(*delta(x, s, y)).mean() + ce(x, y).mean() + ce(s, y).mean()
        ),
    ),
    "eb-jdat-paper": (
        {"alignment": "close"},
        lambda x, s, g, d, y: (
            -lse(d).mean() + lse(g).mean() - lse(s).mean() + lse(x).mean() + ce(x, y).mean() + ce(s, y).mean()
        ),
    ),
    "eb-jdat-release": (
        {},
        lambda x, s, g, d, y: (
            (-lse(d).mean() + lse(g).mean())
            + 0.1 * (-lse(d).mean() + lse(s).mean())
            + ce(x, y).mean()
            + ce(s, y).mean()
        ),
    ),
    "eb-jdat-release-jem": (
        {"backbone": "jem"},
        lambda x, s, g, d, y: (
            0.45 * (-lse(d).mean() + lse(g).mean())
            + 0.05 * (-lse(d).mean() + lse(s).mean())
            + 0.45 * ce(x, y).mean()
            + 0.45 * ce(s, y).mean()
        ),
    ),
    "eb-jdat-widen": (
        {"alignment": "widen", "generative": 0.45, "align": 0.05, "clean": 0.3, "adversarial": 0.2},
        lambda x, s, g, d, y: (
            0.45 * (-lse(d).mean() + lse(g).mean())
            + 0.05 * (-lse(x).mean() + lse(s).mean())
            + 0.3 * ce(x, y).mean()
            + 0.2 * ce(s, y).mean()
        ),
    ),
    "eb-jdat-der": (
        {"alignment": "der", "margin": 0.2, "align": 2.0, "generative": 0.0, "clean": 0.0, "adversarial": 0.0},
        lambda x, s, g, d, y: 2 * np.maximum(np.hypot(*delta(x, s, y)) - 0.2, 0).mean(),
    ),
}  # fmt: skip


def build(name: str, **options):
    kind = METHODS.options(name)
    return trilemma.methods.create(
        name, THREAT if kind.uses_attack else None, sampler=CHAIN if kind.uses_sampler else None, **options
    )


def method_name(case: str) -> str:
    return max((name for name in METHODS.names() if case.startswith(name)), key=len)


# Their losses need more than images: test_local_linearity.py
ELSEWHERE = {"grad-align", "elle", "elle-a"}


def test_every_method_has_a_formula_here() -> None:
    assert {method_name(case) for case in FORMULAS} | ELSEWHERE == set(METHODS.names())


@pytest.mark.parametrize("case", FORMULAS)
def test_the_loss_is_the_formula(toy, case: str) -> None:
    options, formula = FORMULAS[case]
    clf, at = toy.mlp(), points(toy)
    images = (at.clean, at.adversarial, at.generated, at.data)
    wanted = formula(*(toy.logits64(clf, part) for part in images), at.labels.numpy())
    step = build(method_name(case), **options).terms(clf, at, MethodState(0))
    np.testing.assert_allclose(step.loss.item(), wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["jem", "jem++", "sada-jem", "jeat", "eb-jdat", "eb-jdat-release"])
def test_chains_of_given_classes_are_told_from_data_by_the_joint_energy(toy, name: str) -> None:
    clf, classes = toy.mlp(), torch.tensor([2, 2, 1, 0, 0, 1])
    at = points(toy, generated_labels=classes)
    marginal, joint = (build(name).terms(clf, part, MethodState(0)) for part in (points(toy), at))
    f_data = toy.logits64(clf, at.adversarial if name == "jeat" else at.data)
    f_generated = toy.logits64(clf, at.generated)
    rows = np.arange(6)
    contrast = -f_data[rows, at.labels].mean() + f_generated[rows, classes].mean()
    np.testing.assert_allclose(joint.metrics["contrastive"], contrast, rtol=1e-5)
    other = marginal.loss - marginal.metrics["contrastive"]
    torch.testing.assert_close(joint.loss - joint.metrics["contrastive"], other)


WEIGHTS = {
    "trades": {"beta": 6.0},
    "mart": {"beta": 5.0},
    "weat-nat": {"beta": 6.0},
    "weat-adv": {"beta": 6.0},
    "sada-jem": {"generative": 1.5},
    "jem": {"generative": 1.5, "energy_penalty": 0.2},
    "jem++": {"generative": 1.5, "energy_penalty": 0.2},
    "jeat": {"generative": 1.5},
    "eb-jdat": {"generative": 1.5, "align": 0.5, "clean": 2.0, "adversarial": 0.25},
    "eb-jdat-release": {"generative": 1.5, "align": 0.5, "clean": 2.0, "adversarial": 0.25},
}
ALWAYS = {
    "trades": "natural", "mart": "robust", "weat-nat": "natural", "weat-adv": "robust", "sada-jem": "natural",
    "jem": "natural", "jem++": "natural", "jeat": "robust",
}  # fmt: skip
TERM = {
    "energy_penalty": "energy_penalty", "beta": "divergence", "align": "alignment", "clean": "natural",
    "adversarial": "robust",
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_merged_loss_is_its_terms_summed_separately(toy, name: str) -> None:
    clf, weights = toy.conv().train(), WEIGHTS[name]
    images = points(toy)
    merged = build(name, **weights).terms(clf, images, MethodState(0)).loss
    nothing = dict.fromkeys(weights, 0.0)
    base = build(name, **nothing).terms(clf, images, MethodState(0)).loss
    separate = [
        build(name, **nothing | {key: 1.0}).terms(clf, images, MethodState(0)).loss - base for key in weights
    ]
    total = base + sum(weight * term for weight, term in zip(weights.values(), separate, strict=True))
    torch.testing.assert_close(merged, total, rtol=1e-4, atol=1e-5)
    parameters = list(clf.parameters())
    for one, other in zip(
        torch.autograd.grad(merged, parameters), torch.autograd.grad(total, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_reported_terms_add_up_to_the_loss(toy, name: str) -> None:
    step = build(name, **WEIGHTS[name]).terms(toy.mlp(), points(toy), MethodState(0))
    total = step.metrics[ALWAYS[name]] if name in ALWAYS else 0.0
    for key, weight in WEIGHTS[name].items():
        total = total + weight * step.metrics[TERM.get(key, "contrastive")]
    torch.testing.assert_close(step.loss.detach(), total)
    assert not any(value.requires_grad for value in step.metrics.values())


@pytest.mark.parametrize("name", ["jem", "jem++", "sada-jem", "eb-jdat", "eb-jdat-release"])
def test_one_forward_serves_both_terms_where_data_and_clean_images_are_the_same(toy, name: str) -> None:
    clean = toy.images()
    losses, forwards = [], []
    for data in (clean, clean.clone()):  # the same object, and an equal one
        clf = toy.conv().train()
        calls: list[int] = []
        clf.network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        losses.append(build(name).terms(clf, points(toy, clean=clean, data=data), MethodState(0)).loss)
        forwards.append(len(calls))
    torch.testing.assert_close(losses[0], losses[1])
    assert forwards[0] == forwards[1] - 1


def test_trades_has_a_gradient_through_both_sides_of_the_divergence(toy) -> None:
    clf, at = toy.mlp(), points(toy)
    step = build("trades").terms(clf, at, MethodState(0))
    for side in ("clean", "adversarial"):
        divergence = trilemma.energies.kl_divergence(step.live["clean"], step.live["adversarial"]).sum()
        (gradient,) = torch.autograd.grad(divergence, step.live[side], retain_graph=True)
        assert (gradient.abs().sum(1) > 0).all()
    # and the loss uses those very logits
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(step.loss, list(step.live.values())))
