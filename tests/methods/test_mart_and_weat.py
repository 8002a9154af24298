"""MART and WEAT: gradients against finite differences, the weight's anchors, and what they train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trilemma
from trilemma.methods import MethodState, Points
from trilemma.methods.inner import fresh_seeds
from trilemma.methods.weat import energy_weight

NAMES = ["mart", "weat-nat", "weat-adv"]


def build(name: str, radius: float | str = 0.1, **options: Any):
    return trilemma.methods.create(name, trilemma.Threat("linf", radius), **options)


def fixed(toy) -> Points:
    return Points(toy.images(seed=1), toy.labels(), toy.images(seed=2))


def softmax(f: np.ndarray) -> np.ndarray:
    p: np.ndarray = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    return p


def loss64(name: str, f: np.ndarray, g: np.ndarray, y: np.ndarray, beta: float, held: np.ndarray) -> float:
    """The loss from clean and adversarial logits; ``held`` is the energy weight, which is a constant."""
    p, q, rows = softmax(f), softmax(g), np.arange(len(y))
    divergence = (p * np.log(p / q)).sum(1)
    if name == "mart":
        others = q.copy()
        others[rows, y] = 0
        boosted = -np.log(q[rows, y]) - np.log(1.0001 - others.max(1) + 1e-12)
        return float((boosted + beta * divergence * (1.0000001 - p[rows, y])).mean())
    classified = p if name == "weat-nat" else q
    return float((held * (-np.log(classified[rows, y]) + beta * divergence)).mean())


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_logits_is_that_of_the_formula_by_finite_differences(toy, name: str) -> None:
    """Through both sides of the KL and, for MART, through p_y(x); not through the energy weight."""
    method, h = build(name), 1e-6
    step = method.terms(toy.mlp(), fixed(toy), MethodState(0))
    live = [step.live["clean"], step.live["adversarial"]]
    gradients = torch.autograd.grad(step.loss, live)
    f, g = (logits.detach().double().numpy() for logits in live)
    held, y = 1 / np.log1p(np.exp(np.abs(np.log(np.exp(f).sum(1))))), toy.labels().numpy()
    for side, gradient in enumerate(gradients):
        for at in np.ndindex(f.shape):
            shift = np.zeros_like(f)
            shift[at] = h
            up, down = (
                loss64(name, f + s * shift * (side == 0), g + s * shift * (side == 1), y, method.options.beta, held)
                for s in (1, -1)
            )  # fmt: skip
            assert gradient[at].item() == pytest.approx((up - down) / (2 * h), rel=1e-3, abs=1e-5)


def test_the_energy_weight_has_its_anchors_and_does_not_overflow() -> None:
    def weight_at(energy: float) -> float:
        logits = torch.full((1, 4), -energy - np.log(4.0))  # logsumexp is -energy
        return energy_weight(logits).item()

    assert weight_at(0.0) == pytest.approx(1.4427, abs=5e-5)
    assert weight_at(-5.0) == weight_at(5.0) == pytest.approx(0.1997, abs=5e-5)
    assert weight_at(-1e4) == pytest.approx(1e-4)


def test_the_energy_weight_is_a_constant_of_the_clean_logits_of_the_loss_not_normalised(toy) -> None:
    """In train mode the logits, and with them the weight, are those of this very batch."""
    assert not energy_weight(torch.zeros(2, 3, requires_grad=True)).requires_grad
    clf = toy.conv().train()
    step = build("weat-nat").terms(clf, fixed(toy), MethodState(0))
    assert step.clean is not None
    energy = -step.clean.logits.double().logsumexp(1)
    assert step.metrics["weight"].item() == pytest.approx(
        (1 / energy.abs().exp().log1p()).mean().item(), rel=1e-5
    )
    with torch.no_grad():
        assert not torch.allclose(clf.eval().logits(toy.images(seed=1)), step.clean.logits, atol=1e-2)


@pytest.mark.parametrize("logit", [30.0, 90.0, 1000.0])
def test_the_boosted_cross_entropy_stays_finite_at_full_confidence(logit: float) -> None:
    """Certain of the wrong class, and of the right one."""
    logits = torch.tensor([[logit, 0.0, 0.0], [0.0, logit, 0.0]])

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(2, 3))

        def forward(self, images: Tensor) -> Tensor:
            return logits + self.shift

    clf = trilemma.Classifier(Fixed(), 3)
    images = torch.zeros(2, 1, 2, 2)
    step = build("mart").terms(clf, Points(images, torch.tensor([1, 1]), images.clone()), MethodState(0))
    # -log p_y is the logit itself; -log(1.0001 - 1) = 9.21 where the other class has everything
    assert step.loss.item() == pytest.approx((logit + 9.2103 - 0.0001) / 2, rel=1e-3)
    step.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in clf.parameters())


def points_of(toy, name: str, clf: Any, **options: Any) -> tuple[Points, Any]:
    method = build(name, **options)
    state = method.init_state(clf, toy.image_set(), 0)
    return method.points(clf, toy.batch(), state), state


def test_mart_climbs_the_cross_entropy_from_beside_the_image_in_eval_mode(toy) -> None:
    clf, batch, radius = toy.conv().train(), toy.batch(), 0.1
    points, state = points_of(toy, "mart", clf, attack={"steps": 3})
    state.generator.manual_seed(0)
    x = batch.images + 0.001 * trilemma.noise.normal(fresh_seeds(state, batch.images), 0, (1, 4, 4))
    clf.eval()
    for _ in range(3):
        x = x.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(clf.logits(x), batch.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = x + radius / 4 * gradient.sign()
        x = x.clamp(batch.images - radius, batch.images + radius).clamp(0, 1)
    assert points.adversarial is not None
    torch.testing.assert_close(points.adversarial.detach(), x.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["weat-nat", "weat-adv"])
def test_weat_trains_on_the_points_of_trades(toy, name: str) -> None:
    clf = toy.conv().train()
    ours, theirs = (points_of(toy, method, clf)[0] for method in (name, "trades"))
    assert ours.adversarial is not None and theirs.adversarial is not None
    assert torch.equal(ours.adversarial, theirs.adversarial)


@pytest.mark.parametrize(("name", "beta"), [("mart", 5), ("weat-nat", 6), ("weat-adv", 6)])
def test_steps_sizes_and_weights_are_the_published_ones(name: str, beta: float) -> None:
    method = build(name, "8/255")
    assert (method.attack.steps, method.attack.step_size, method.options.attack_mode) == (10, "2/255", "eval")
    assert method.options.beta == beta
