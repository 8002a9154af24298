"""How a gradient becomes a weight step: plain, adaptive sharpness-aware (SAM), adversarial weights (AWP)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trilemma.classifier.contexts import running_statistics_kept
from trilemma.methods.base import Step

Reduce = Callable[[], None]


def plain(compute: Callable[[], Step], optimiser: torch.optim.Optimizer, reduce: Reduce) -> Step:
    """``w <- w - lr g``, as the optimiser has it.

    Args:
        compute: the method's terms at the points of this step.
        optimiser: with the rate of this step set.
        reduce: averages gradients over processes; called once after backward.
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
    """The gradient of ``loss``, averaged over the processes, of every weight that it reaches.

    Nothing stays behind: the weights' ``grad`` is ``None`` afterwards, and adversarial images receive none,
    so that the one they hold after the step is that of the pass which the weights were stepped by.

    Args:
        loss: scalar with its graph, which is freed.
        optimiser: holds the weights.
        reduce: averages ``grad`` over processes.

    Returns:
        Pairs (weight, gradient) of equal shape, in the optimiser's order.
    """
    weights = [w for group in optimiser.param_groups for w in group["params"] if w.requires_grad]
    optimiser.zero_grad(set_to_none=True)
    # this form of backward accumulates into ``inputs`` alone: into nothing else that asks for a gradient
    loss.backward(inputs=weights)
    reduce()
    reached = [(w, w.grad) for w in weights if w.grad is not None]
    optimiser.zero_grad(set_to_none=True)
    return reached


def sam(
    compute: Callable[[], Step],
    optimiser: torch.optim.Optimizer,
    reduce: Reduce,
    network: nn.Module,
    rho: float,
) -> Step:
    """The gradient taken at ``w + rho w^2 g / (|| |w| g ||_2 + 1e-12)``, applied at ``w``.

    The norm runs over all parameters. Both passes use the same points; the second leaves BatchNorm's
    running statistics alone.

    Args:
        rho: radius of the step; 2 in SADA-JEM. The others as in :func:`trilemma.updates.updates.plain`.

    Returns:
        What ``compute`` gave at w.
    """
    step = compute()
    reached = weight_gradients(step.loss, optimiser, reduce)
    own = [w.detach().clone() for w, _ in reached]
    with torch.no_grad():
        scaled = [w.abs() * g for w, g in reached]
        length = torch.stack([s.norm() for s in scaled]).norm() + 1e-12
        for (w, _), s in zip(reached, scaled, strict=True):
            w.add_(w.abs() * s * (rho / length))
    with running_statistics_kept(network):
        compute().loss.backward()
    reduce()
    with torch.no_grad():
        for (w, _), before in zip(reached, own, strict=True):
            w.copy_(before)
    optimiser.step()
    return step


# Where a gradient vanishes the weight stays; the release's constant.
TINY = 1e-20


def awp(
    compute: Callable[[], Step],
    optimiser: torch.optim.Optimizer,
    reduce: Reduce,
    network: nn.Module,
    gamma: float,
) -> Step:
    """The optimiser's step taken at ``w + v`` (weight decay too), then carried back to ``w``.

    ``v = gamma ||w|| g / ||g||`` for each weight tensor of more than one dimension, 0 for the others; g is the
    gradient of the method's own loss at w. Both passes use the same points. BatchNorm's running statistics are
    moved by the second, at ``w + v``, as in the release, whose first pass runs on a copy of the network.

    Args:
        gamma: length of v as a share of the weights' own, per tensor; 5e-3 with TRADES, 1e-2 with plain
            adversarial training. The others as in :func:`trilemma.updates.updates.plain`.

    Returns:
        What ``compute`` gave at w.
    """
    with running_statistics_kept(network):
        step = compute()
    moved = [(w, g) for w, g in weight_gradients(step.loss, optimiser, reduce) if w.dim() > 1]
    own = [w.detach().clone() for w, _ in moved]
    with torch.no_grad():
        for w, g in moved:
            w.add_(g * (gamma * w.norm() / (g.norm() + TINY)))
    perturbed = [w.detach().clone() for w, _ in moved]
    compute().loss.backward()
    reduce()
    optimiser.step()
    with torch.no_grad():
        for (w, _), before, there in zip(moved, own, perturbed, strict=True):
            # the step alone is carried over: (w + v) - v would leave a rounding in w, step after step
            w.copy_(before + (w - there))
    return step
