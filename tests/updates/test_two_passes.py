"""AWP and SAM on a two-layer net in float64: against NumPy written out, and against finite differences of the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma.config.sections import UpdateConfig
from trilemma.methods import Points, Step
from trilemma.training import build
from trilemma.updates.ema import EMA
from trilemma.updates.updates import awp, plain, sam

GAMMA, RHO, RATE, MOMENTUM, DECAY = 0.3, 0.5, 0.1, 0.9, 0.05
NAMES = ("w1", "b1", "w2", "b2")


def nothing() -> None:
    """One process: there is nothing to reduce."""


class TwoLayers(nn.Module):
    """``mean (tanh(x w1 + b1) w2 + b2 - t)^2 / 2`` over five points, and a weight that the loss does not reach."""

    w1: nn.Parameter
    b1: nn.Parameter
    w2: nn.Parameter
    b2: nn.Parameter
    unused: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        source = np.random.default_rng(0)
        self.x, self.t = source.normal(size=(5, 3)), source.normal(size=(5, 2))
        for name, shape in (("w1", (3, 4)), ("b1", (4,)), ("w2", (4, 2)), ("b2", (2,)), ("unused", (2, 2))):
            setattr(self, name, nn.Parameter(torch.from_numpy(source.normal(size=shape))))
        self.frozen = nn.Parameter(torch.ones(2, 2, dtype=torch.float64), requires_grad=False)

    def step(self) -> Step:
        x, t = torch.from_numpy(self.x), torch.from_numpy(self.t)
        return Step(((torch.tanh(x @ self.w1 + self.b1) @ self.w2 + self.b2 - t) ** 2).sum(1).mean() / 2)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name).detach().numpy().copy() for name in NAMES}

    def loss(self, w: dict[str, np.ndarray]) -> float:
        out = np.tanh(self.x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
        return float(((out - self.t) ** 2).sum(1).mean() / 2)

    def gradient(self, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        hidden = np.tanh(self.x @ w["w1"] + w["b1"])
        error = (hidden @ w["w2"] + w["b2"] - self.t) / len(self.x)
        back = (error @ w["w2"].T) * (1 - hidden**2)
        return {"w1": self.x.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}

    def differences(self, w: dict[str, np.ndarray], h: float = 1e-6) -> dict[str, np.ndarray]:
        """The gradient by central differences: no calculus of ours in it."""
        found = {name: np.zeros_like(value) for name, value in w.items()}
        for name, value in w.items():
            for at in np.ndindex(value.shape):
                up, down = ({k: v.copy() for k, v in w.items()} for _ in range(2))
                up[name][at] += h
                down[name][at] -= h
                found[name][at] = (self.loss(up) - self.loss(down)) / (2 * h)
        return found


def awp_point(w, g, gamma=GAMMA):
    """Each matrix moved by ``gamma ||w|| g / ||g||``; vectors stay."""
    return {
        name: w[name] + gamma * np.sqrt((w[name] ** 2).sum()) * g[name] / np.sqrt((g[name] ** 2).sum())
        if w[name].ndim > 1 else w[name]
        for name in w
    }  # fmt: skip


def sam_point(w, g, rho=RHO):
    """``w + rho w^2 g / (|| |w| g || + 1e-12)``, one norm over everything."""
    norm = np.sqrt(sum(((np.abs(w[name]) * g[name]) ** 2).sum() for name in w))
    return {name: w[name] + rho * w[name] ** 2 * g[name] / (norm + 1e-12) for name in w}


def sgd(network: nn.Module, rate: float = RATE, momentum: float = MOMENTUM, decay: float = DECAY):
    return torch.optim.SGD(network.parameters(), lr=rate, momentum=momentum, weight_decay=decay)


def close(found, wanted, rtol: float = 1e-10) -> None:
    for name in NAMES:
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, atol=1e-12)


def test_the_test_s_own_gradient_is_that_of_its_loss() -> None:
    network = TwoLayers()
    w = network.arrays()
    close(network.gradient(w), network.differences(w), rtol=1e-6)


def test_three_perturbed_steps_are_the_formula_with_momentum_and_weight_decay_at_the_perturbed_weights() -> (
    None
):
    network = TwoLayers()
    optimiser, unused = sgd(network), network.unused.detach().clone()
    w, velocity = network.arrays(), dict.fromkeys(NAMES, 0.0)
    for _ in range(3):
        at = awp_point(w, network.gradient(w))
        applied = network.gradient(at)
        before = network.loss(w)
        for name in NAMES:
            velocity[name] = MOMENTUM * velocity[name] + applied[name] + DECAY * at[name]
            w[name] = at[name] - RATE * velocity[name] - (at[name] - w[name])
        step = awp(network.step, optimiser, nothing, network, GAMMA)
        assert step.loss.item() == pytest.approx(before), (
            "what is returned was seen at the unperturbed weights"
        )
        close(network.arrays(), w)
    assert torch.equal(network.unused, unused) and bool((network.frozen == 1).all())
    assert network.unused.grad is None and network.frozen.grad is None


@pytest.mark.parametrize(
    ("update", "point"), [(partial(awp, gamma=GAMMA), awp_point), (partial(sam, rho=RHO), sam_point)]
)
def test_the_applied_gradient_is_that_of_the_loss_at_the_perturbed_weights(update, point) -> None:
    network = TwoLayers()
    w = network.arrays()
    wanted = network.differences(point(w, network.differences(w)))
    here = network.differences(w)
    update(network.step, sgd(network, 1.0, 0.0, 0.0), nothing, network=network)
    after = network.arrays()
    close({name: w[name] - after[name] for name in NAMES}, wanted, rtol=1e-5)
    assert all(np.abs(wanted[name] - here[name]).max() > 1e-3 for name in NAMES), "the perturbation matters"


@pytest.mark.parametrize("update", [partial(awp, gamma=GAMMA), partial(sam, rho=RHO)], ids=["awp", "sam"])
def test_a_step_of_rate_zero_leaves_every_bit_of_the_weights(toy, update) -> None:
    clf = toy.conv().train()
    before = [p.detach().clone() for p in clf.parameters()]
    update(lambda: Step(clf.logits(toy.images()).square().mean()), sgd(clf, 0.0), nothing, network=clf)
    assert all(torch.equal(p, b) for p, b in zip(clf.parameters(), before, strict=True))


def test_matrices_are_perturbed_by_a_share_of_their_length_and_vectors_stay(toy) -> None:
    clf, seen = toy.conv().train(), []

    def compute() -> Step:
        seen.append([p.detach().clone() for p in clf.parameters()])
        return Step(clf.logits(toy.images()).square().mean())

    awp(compute, sgd(clf), nothing, clf, 0.01)
    for (name, parameter), before, there in zip(clf.named_parameters(), *seen, strict=True):
        length = (0.01 if parameter.dim() > 1 else 0.0) * before.norm().item()
        assert (there - before).norm().item() == pytest.approx(length, rel=1e-3), name


def test_a_vanishing_gradient_perturbs_nothing() -> None:
    network = TwoLayers()
    w = network.arrays()
    awp(lambda: Step(0.0 * network.step().loss), sgd(network, decay=0.0), nothing, network, GAMMA)
    close(network.arrays(), w)


@pytest.mark.parametrize("update", [partial(awp, gamma=GAMMA), partial(sam, rho=RHO)], ids=["awp", "sam"])
def test_running_statistics_move_once(toy, update) -> None:
    """SAM moves them at w, AWP at w + v, where it trains; either way by one forward."""
    clf, images, weights = toy.conv().train(), toy.images(), []
    once = copy.deepcopy(clf)

    def compute() -> Step:
        weights.append(copy.deepcopy(clf.state_dict()))
        return Step(clf.logits(images).square().mean())

    update(compute, sgd(clf), nothing, network=clf)
    assert len(weights) == 2
    at = weights[1] if update.func is awp else weights[0]
    once.load_state_dict(
        {**at, **{k: v for k, v in once.state_dict().items() if "running" in k or "num_" in k}}
    )
    once.logits(images)
    buffers = dict(once.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in clf.named_buffers())
    assert buffers["network.1.num_batches_tracked"] == 1


def adversarial_step(toy, update: Callable[..., Step]) -> tuple[list[Tensor], Points]:
    """The points of one TRADES step after an update, and the input gradient of each pass on its own."""
    clf, method = toy.mlp(), trilemma.methods.create("trades", trilemma.Threat("linf", 0.1))
    state = method.init_state(clf, toy.image_set(), 0)
    points = method.points(clf, toy.batch(), state)
    gradients = []

    def compute() -> Step:
        step = method.terms(clf, points, state)
        assert points.adversarial is not None
        gradients.append(torch.autograd.grad(step.loss, points.adversarial, retain_graph=True)[0])
        return step

    update(compute, sgd(clf), nothing, network=clf)
    return gradients, points


@pytest.mark.parametrize(
    "update",
    [lambda *arguments, network: plain(*arguments), partial(awp, gamma=GAMMA), partial(sam, rho=RHO)],
    ids=["plain", "awp", "sam"],
)
def test_adversarial_images_hold_the_gradient_of_the_pass_that_the_weights_were_stepped_by(
    toy, update
) -> None:
    gradients, points = adversarial_step(toy, update)
    assert points.adversarial is not None and points.adversarial.grad is not None
    torch.testing.assert_close(points.adversarial.grad, gradients[-1], rtol=0, atol=0)
    if len(gradients) == 2:
        assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2, atol=0), "the passes must differ"


@pytest.mark.parametrize(
    ("update", "point"),
    [(partial(awp, gamma=GAMMA), awp_point), (partial(sam, rho=RHO), sam_point)],
    ids=["awp", "sam"],
)
def test_the_perturbation_follows_the_gradient_averaged_over_the_processes(update, point) -> None:
    """Averaging with other processes is played by a factor of each gradient's own."""
    network, calls = TwoLayers(), []
    w = network.arrays()
    factor = {"w1": 1.5, "b1": 0.2, "w2": 0.75, "b2": 2.0}

    def reduce() -> None:
        calls.append(1)
        for name in NAMES:  # in place, as the loop does it
            getattr(network, name).grad.mul_(factor[name])

    update(network.step, sgd(network, 1.0, 0.0, 0.0), reduce, network=network)
    assert len(calls) == 2
    applied = network.gradient(point(w, {name: factor[name] * g for name, g in network.gradient(w).items()}))
    after = network.arrays()
    close({n: w[n] - after[n] for n in NAMES}, {n: factor[n] * applied[n] for n in NAMES})


def test_the_perturbation_begins_with_its_epoch(toy) -> None:
    clf = toy.mlp()
    section = UpdateConfig(name="awp", gamma=0.01, from_epoch=3)
    assert build.build_update(section, clf, 2) is plain
    for epoch in (3, 4):
        later = build.build_update(section, clf, epoch)
        assert isinstance(later, partial) and later.func is awp and later.keywords["gamma"] == 0.01


def test_the_average_takes_in_the_restored_weights() -> None:
    network = TwoLayers()
    average = EMA(network, 0.5)
    awp(network.step, sgd(network, 0.0), nothing, network, GAMMA)
    average.update(network)
    assert all(torch.equal(average.average[name], value) for name, value in network.state_dict().items())
