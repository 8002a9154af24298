"""The plain weight step: one backward pass, one optimiser step."""

from __future__ import annotations

from collections.abc import Callable

import torch

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
