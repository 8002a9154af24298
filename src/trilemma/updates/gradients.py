"""The gradient that a two-pass update looks along before it takes the one it applies."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.updates.plain import Reduce


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
