from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trilemma import energies

N, K = 64, 5


def pair(scale: float = 3.0):
    """Clean and adversarial logits and labels, as float64 tensors (their NumPy arrays are exact copies)."""
    generator = torch.Generator().manual_seed(0)
    clean, starred = torch.randn(2, N, K, generator=generator, dtype=torch.float64) * scale
    return clean, starred, torch.randint(K, (N,), generator=generator)


def probabilities(f):
    e = np.exp(f - f.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reference(f, labels):
    """E(x, y), E(x) and CE from their definitions; CE by the softmax, not by the energies."""
    f, labels = f.numpy(), labels.numpy()
    rows = np.arange(len(f))
    return -f[rows, labels], -np.log(np.exp(f).sum(1)), -np.log(probabilities(f)[rows, labels])


def test_joint_and_marginal_energy_are_their_definitions() -> None:
    f, _, y = pair()
    joint, marginal, _ = reference(f, y)
    np.testing.assert_allclose(energies.joint_energy(f, y), joint, rtol=1e-12)
    np.testing.assert_allclose(energies.marginal_energy(f), marginal, rtol=1e-12)


def test_cross_entropy_is_joint_minus_marginal_energy() -> None:
    f, _, y = pair()
    joint, marginal, ce = reference(f, y)
    np.testing.assert_allclose(joint - marginal, ce, rtol=1e-9)
    np.testing.assert_allclose(energies.cross_entropy(f, y), ce, rtol=1e-9)


def test_a_constant_added_to_the_logits_moves_the_energies_and_not_the_cross_entropy() -> None:
    f, _, y = pair()
    torch.testing.assert_close(energies.cross_entropy(f + 7, y), energies.cross_entropy(f, y))
    torch.testing.assert_close(energies.marginal_energy(f + 7), energies.marginal_energy(f) - 7)


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6), st.data())
def test_cross_entropy_is_finite_and_never_negative(logits, data) -> None:
    label = data.draw(st.integers(0, len(logits) - 1))
    ce = energies.cross_entropy(torch.tensor([logits]), torch.tensor([label]))
    assert torch.isfinite(ce).all() and (ce >= 0).all()


@pytest.mark.parametrize("height", [30.0, 300.0, 3000.0])
def test_cross_entropy_and_its_gradient_keep_their_digits_on_sure_networks(height: float) -> None:
    """Attacks climb it where it is small; what it lost to the size of the logits they would not see."""
    found = []
    for dtype in (torch.float32, torch.float64):
        f = torch.tensor([[height, height - 8.0, height - 9.5]], dtype=dtype, requires_grad=True)
        loss = energies.cross_entropy(f, torch.tensor([0]))
        (gradient,) = torch.autograd.grad(loss.sum(), f)
        found.append((loss.detach().double(), gradient.double()))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single, double, rtol=3e-4, atol=0)


def test_kl_divergence_is_its_definition_and_the_trades_identity_holds() -> None:
    clean, starred, _ = pair()
    p, q = probabilities(clean.numpy()), probabilities(starred.numpy())
    kl = (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(energies.kl_divergence(clean, starred), kl, rtol=1e-9)
    # KL = E_{k~p(.|x)}[E(x*,k) - E(x,k)] + dE(x)
    expected_gap = (p * (clean.numpy() - starred.numpy())).sum(1)
    delta = -np.log(np.exp(clean.numpy()).sum(1)) + np.log(np.exp(starred.numpy()).sum(1))
    np.testing.assert_allclose(expected_gap + delta, kl, rtol=1e-9)


def test_kl_divergence_has_a_gradient_through_both_sides() -> None:
    clean, starred, _ = pair()
    clean.requires_grad_(), starred.requires_grad_()
    assert torch.autograd.gradcheck(energies.kl_divergence, (clean[:3], starred[:3]))
    for gradient in torch.autograd.grad(energies.kl_divergence(clean, starred).sum(), (clean, starred)):
        assert (gradient.abs().sum(1) > 0).all()


def test_delta_energies_are_clean_minus_adversarial_and_differ_by_the_fall_of_the_loss() -> None:
    clean, starred, y = pair()
    marginal, joint = energies.delta_energies(clean, starred, y)
    (joint_x, marginal_x, ce_x), (joint_s, marginal_s, ce_s) = reference(clean, y), reference(starred, y)
    np.testing.assert_allclose(marginal, marginal_x - marginal_s, rtol=1e-9)
    np.testing.assert_allclose(joint, joint_x - joint_s, rtol=1e-9)
    np.testing.assert_allclose(joint - marginal, ce_x - ce_s, atol=1e-9)


def test_abnormal_examples_are_those_whose_loss_fell() -> None:
    clean, starred, y = pair()
    fell = reference(starred, y)[2] < reference(clean, y)[2]
    assert 0 < fell.sum() < N
    np.testing.assert_array_equal(energies.abnormal(clean, starred, y), fell)


@pytest.mark.parametrize("margin", [0.0, 0.7, 3.0])
def test_delta_energy_penalty_is_the_excess_of_the_shift_over_the_margin(margin: float) -> None:
    clean, starred, y = pair(1.0)
    joint_x, marginal_x, _ = reference(clean, y)
    joint_s, marginal_s, _ = reference(starred, y)
    shift = np.hypot(marginal_x - marginal_s, joint_x - joint_s)
    penalty = energies.delta_energy_penalty(clean, starred, y, margin)
    np.testing.assert_allclose(penalty, np.maximum(shift - margin, 0), atol=1e-6)
    if margin:
        assert 0 < (penalty == 0).sum() < N


def test_delta_energy_penalty_has_a_gradient_through_both_logits_outside_the_margin_only() -> None:
    clean, starred, y = pair(1.0)
    clean.requires_grad_(), starred.requires_grad_()
    penalty = energies.delta_energy_penalty(clean, starred, y, margin=1.0)
    outside = penalty > 0
    assert 0 < outside.sum() < N
    for gradient in torch.autograd.grad(penalty.sum(), (clean, starred)):
        assert torch.equal(gradient.abs().sum(1) > 0, outside)


def test_delta_energy_penalty_agrees_with_finite_differences() -> None:
    clean, starred, y = pair(1.0)
    clean, starred = clean[:4].requires_grad_(), starred[:4].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: energies.delta_energy_penalty(a, b, y[:4]), (clean, starred))


def test_delta_energy_penalty_of_an_unmoved_pair_is_zero_with_a_finite_gradient() -> None:
    logits = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
    clean, starred = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    penalty = energies.delta_energy_penalty(clean, starred, torch.zeros(N, dtype=torch.int64))
    assert penalty.max() <= 1e-6
    for gradient in torch.autograd.grad(penalty.sum(), (clean, starred)):
        assert torch.equal(gradient, torch.zeros_like(gradient))
