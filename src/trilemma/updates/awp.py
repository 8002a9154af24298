"""Adversarial weight perturbation (Wu, Xia and Wang 2020, arXiv 2004.05884)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trilemma.contexts import running_statistics_kept
from trilemma.methods.base import Step
from trilemma.updates.gradients import weight_gradients
from trilemma.updates.plain import Reduce

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
            adversarial training. The others as in :func:`trilemma.updates.plain.plain`.

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
