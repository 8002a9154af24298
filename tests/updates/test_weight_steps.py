"""Plain and sharpness-aware steps against NumPy, on a loss whose gradient is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from trilemma.methods import Step
from trilemma.updates.updates import plain, sam

RHO, RATE = 0.7, 0.1
A, B = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 0.1])


class Quartic(nn.Module):
    """Two parameters of different scale; loss ``sum c w^4 / 4``, so the gradient is ``c w^3``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(A.clone()), nn.Parameter(B.clone())
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def step(self) -> Step:
        return Step((self.a**4).sum() / 4 + 2 * (self.b**4).sum() / 4)


def gradient(w):
    return np.array([1, 1, 1, 2, 2]) * w**3


def weights(network: Quartic) -> np.ndarray:
    return torch.cat([network.a, network.b]).detach().double().numpy()


def sgd(network: nn.Module, **options) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=RATE, **options)


def nothing() -> None:
    """One process: there is nothing to reduce."""


def test_the_plain_step_is_gradient_descent() -> None:
    network = Quartic()
    start = weights(network)
    step = plain(network.step, sgd(network), nothing)
    np.testing.assert_allclose(weights(network), start - RATE * gradient(start), rtol=1e-6)
    assert step.loss.item() == pytest.approx((start**4 * [1, 1, 1, 2, 2]).sum() / 4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_sharpness_aware_step_is_its_formula(momentum: float) -> None:
    network = Quartic()
    optimiser = sgd(network, momentum=momentum)
    w, velocity, visited = weights(network), np.zeros(5), []

    def compute() -> Step:
        visited.append(weights(network))
        return network.step()

    for _ in range(3):
        g = gradient(w)
        perturbed = w + RHO * w**2 * g / (np.linalg.norm(np.abs(w) * g) + 1e-12)  # norm over all parameters
        velocity = momentum * velocity + gradient(perturbed)
        visited.clear()
        step = sam(compute, optimiser, nothing, network, RHO)
        np.testing.assert_allclose(visited[0], w, rtol=1e-5)
        np.testing.assert_allclose(visited[1], perturbed, rtol=1e-5)
        assert step.loss.item() == pytest.approx((w**4 * [1, 1, 1, 2, 2]).sum() / 4, rel=1e-4)
        w = w - RATE * velocity
        np.testing.assert_allclose(weights(network), w, rtol=1e-4)
    assert torch.equal(network.frozen, torch.ones(2))


def test_weights_are_restored_exactly_before_the_step() -> None:
    network = Quartic()
    sam(network.step, torch.optim.SGD(network.parameters(), lr=0.0), nothing, network, RHO)
    assert torch.equal(network.a.detach(), A) and torch.equal(network.b.detach(), B)


def test_a_vanishing_gradient_is_no_trouble() -> None:
    network = Quartic()
    with torch.no_grad():
        network.a.zero_(), network.b.zero_()
    sam(network.step, sgd(network), nothing, network, RHO)
    assert np.array_equal(weights(network), np.zeros(5))


def test_the_gradients_of_both_passes_are_averaged_over_the_processes() -> None:
    network, calls = Quartic(), []
    sam(network.step, sgd(network), lambda: calls.append(weights(network)), network, RHO)
    assert len(calls) == 2 and not np.array_equal(calls[0], calls[1])
    plain(network.step, sgd(network), lambda: calls.append(weights(network)))
    assert len(calls) == 3


def test_only_the_first_pass_moves_the_running_statistics(toy) -> None:
    images, once = toy.images(), toy.conv().train()
    once.logits(images)
    clf, losses = toy.conv().train(), []

    def compute() -> Step:
        losses.append(clf.logits(images).square().mean())
        return Step(losses[-1])

    sam(compute, sgd(clf), nothing, clf, RHO)
    assert len(losses) == 2 and losses[0] != losses[1]
    assert all(torch.equal(a, b) for a, b in zip(clf.buffers(), once.buffers(), strict=True))
