"""Adaptive sharpness-aware step (Kwon et al. 2021), as SADA-JEM uses it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trilemma.contexts import running_statistics_kept
from trilemma.methods.base import Step
from trilemma.updates.gradients import weight_gradients
from trilemma.updates.plain import Reduce


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
        rho: radius of the step; 2 in SADA-JEM. The others as in :func:`trilemma.updates.plain.plain`.

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
