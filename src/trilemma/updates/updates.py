"""Weight updates: plain, adaptive sharpness-aware minimisation (SAM), adversarial weight perturbation (AWP)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trilemma.classifier.contexts import running_statistics_kept
from trilemma.methods.base import Step

# Averages the gradients of the weights over the processes, in place.
Reduce = Callable[[], None]


def plain(compute: Callable[[], Step], optimiser: torch.optim.Optimizer, reduce: Reduce) -> Step:
    """Takes the optimiser's step along the gradient at ``w``.

    Args:
        compute: computes the method's loss at the points of this step.
        optimiser: with the learning rate of this step.
        reduce: averages the gradients over the processes; called once after the backward pass.

    Returns:
        The return value of ``compute``.
    """
    step = compute()
    optimiser.zero_grad(set_to_none=True)
    step.loss.backward()
    reduce()
    optimiser.step()
    return step


def weight_gradients(
    loss: Tensor, optimiser: torch.optim.Optimizer, reduce: Reduce
) -> list[tuple[Tensor, Tensor]]:
    """Returns the gradient of ``loss`` with respect to every weight that it depends on, averaged over the processes.

    Afterwards ``grad`` of every weight is ``None``. ``grad`` of the adversarial images is not changed, so that after
    the step it is the gradient of the second pass alone, from which the weights are updated.

    Args:
        loss: scalar with its graph, which is freed.
        optimiser: its parameters are the weights.
        reduce: averages ``grad`` over the processes.

    Returns:
        Pairs (weight, gradient) of equal shape, in the optimiser's order.
    """
    weights = [w for group in optimiser.param_groups for w in group["params"] if w.requires_grad]
    optimiser.zero_grad(set_to_none=True)
    # With ``inputs``, backward accumulates gradients in these tensors only, not in the adversarial images.
    loss.backward(inputs=weights)
    reduce()
    pairs = [(w, w.grad) for w in weights if w.grad is not None]
    optimiser.zero_grad(set_to_none=True)
    return pairs


def sam(
    compute: Callable[[], Step],
    optimiser: torch.optim.Optimizer,
    reduce: Reduce,
    network: nn.Module,
    rho: float,
) -> Step:
    """Takes the optimiser's step at ``w`` with the gradient at ``w + rho w^2 g / (|| |w| g ||_2 + 1e-12)``.

    g is the gradient at w, and the norm is over all parameters. Both passes use the same points; the second does not
    update BatchNorm's running statistics.

    Args:
        network: the network with the BatchNorm layers.
        rho: radius of the perturbation; 2 in SADA-JEM. Other arguments as in :func:`trilemma.updates.updates.plain`.

    Returns:
        The return value of ``compute`` at w.
    """
    step = compute()
    gradients = weight_gradients(step.loss, optimiser, reduce)
    originals = [w.detach().clone() for w, _ in gradients]
    with torch.no_grad():
        scaled = [w.abs() * g for w, g in gradients]
        norm = torch.stack([s.norm() for s in scaled]).norm() + 1e-12
        for (w, _), s in zip(gradients, scaled, strict=True):
            w.add_(w.abs() * s * (rho / norm))
    with running_statistics_kept(network):
        compute().loss.backward()
    reduce()
    with torch.no_grad():
        for (w, _), original in zip(gradients, originals, strict=True):
            w.copy_(original)
    optimiser.step()
    return step


# Added to the gradient norm of AWP: a weight with gradient 0 is not perturbed. The constant of the authors' code.
TINY = 1e-20


def awp(
    compute: Callable[[], Step],
    optimiser: torch.optim.Optimizer,
    reduce: Reduce,
    network: nn.Module,
    gamma: float,
) -> Step:
    """Takes the optimiser's step (with weight decay) at ``w + v`` and applies the same change to ``w``.

    ``v = gamma ||w|| g / ||g||`` for each weight tensor of more than one dimension, 0 for the others; g is the
    gradient of the method's loss at w. Both passes use the same points. Only the second, at ``w + v``, updates
    BatchNorm's running statistics, as in the authors' code, whose first pass runs on a copy of the network.

    Args:
        network: the network with the BatchNorm layers.
        gamma: norm of v relative to the norm of w, per tensor; 5e-3 with TRADES, 1e-2 with plain adversarial
            training. Other arguments as in :func:`trilemma.updates.updates.plain`.

    Returns:
        The return value of ``compute`` at w.
    """
    with running_statistics_kept(network):
        step = compute()
    gradients = [(w, g) for w, g in weight_gradients(step.loss, optimiser, reduce) if w.dim() > 1]
    originals = [w.detach().clone() for w, _ in gradients]
    with torch.no_grad():
        for w, g in gradients:
            w.add_(g * (gamma * w.norm() / (g.norm() + TINY)))
    perturbed = [w.detach().clone() for w, _ in gradients]
    compute().loss.backward()
    reduce()
    optimiser.step()
    with torch.no_grad():
        for (w, _), original, start in zip(gradients, originals, perturbed, strict=True):
            # Adds the step to w: subtracting v from w + v would add a rounding error to w at every step.
            w.copy_(original + (w - start))
    return step
