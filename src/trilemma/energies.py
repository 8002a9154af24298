"""Energies that the logits of a classifier define (JEM, arXiv 1912.03263).

With logits ``f(x)`` of shape ``[N, K]``: joint energy ``E(x, y) = -f(x)[y]``, marginal energy
``E(x) = -logsumexp_k f(x)[k]``. A low energy is a high density. All functions are differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def joint_energy(logits: Tensor, labels: Tensor) -> Tensor:
    """The joint energy ``E(x, y) = -f(x)[y]``.

    Args:
        logits: ``[N, K]``.
        labels: int64 ``[N]``, in ``0..K-1``.

    Returns:
        ``[N]``, in logit units.
    """
    return -logits.gather(1, labels[:, None]).squeeze(1)


def marginal_energy(logits: Tensor) -> Tensor:
    """The marginal energy ``E(x) = -logsumexp_k f(x)[k]`` of logits ``[N, K]``: ``[N]``, in logit units."""
    return -logits.logsumexp(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy ``CE(x, y) = E(x, y) - E(x) >= 0`` of each image, ``[N]``."""
    # Not computed as that difference, which loses precision for large logits: attacks on confident networks would then
    # follow rounding errors.
    return F.cross_entropy(logits, labels, reduction="none")


def delta_energies(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Clean minus adversarial energies ``(dE(x), dE(x, y))``, each ``[N]`` (DER, arXiv 2505.22486).

    Args:
        clean_logits: ``[N, K]`` at x.
        adversarial_logits: ``[N, K]`` at x*.
        labels: int64 ``[N]``.
    """
    marginal = marginal_energy(clean_logits) - marginal_energy(adversarial_logits)
    joint = joint_energy(clean_logits, labels) - joint_energy(adversarial_logits, labels)
    return marginal, joint


def abnormal(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each adversarial example is abnormal: the attack lowered its loss, ``dE(x, y) > dE(x)``. Bool ``[N]``."""
    marginal, joint = delta_energies(clean_logits, adversarial_logits, labels)
    return joint > marginal


def shift_length(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """The length of the energy shift, ``||[dE(x), dE(x, y)]||_2``, of each image, ``[N]``.

    1e-12 is added under the root, so that the gradient at a shift of 0 is 0 and not NaN.
    """
    marginal, joint = delta_energies(clean_logits, adversarial_logits, labels)
    return (marginal.square() + joint.square() + 1e-12).sqrt()


def delta_energy_penalty(
    clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, margin: float = 0.0
) -> Tensor:
    """``L_dE = max(||[dE(x), dE(x, y)]||_2 - margin, 0)`` of each image, ``[N]`` (DER, arXiv 2505.22486).

    It is differentiable with respect to the clean and the adversarial logits.
    """
    return (shift_length(clean_logits, adversarial_logits, labels) - margin).clamp_min(0.0)


def kl_divergence(logits: Tensor, other_logits: Tensor) -> Tensor:
    """``KL(softmax f(x) || softmax f(x*))`` of each image, ``[N]``, differentiable in both arguments (TRADES).

    Args:
        logits: ``[N, K]``, f(x).
        other_logits: ``[N, K]``, f(x*).
    """
    log_p = torch.log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p - torch.log_softmax(other_logits, dim=1))).sum(1)
