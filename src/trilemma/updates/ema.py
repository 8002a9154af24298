"""Exponential moving average of weights and BatchNorm buffers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """``avg <- d avg + (1 - d) w`` with ``d = min(decay, (1 + n) / (10 + n))`` at step n.

    The warm-up keeps the first steps from dominating. Buffers that are not floating point are copied.

    Args:
        network: whose state is averaged.
        decay: the final d, such as 0.9995.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.average = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights after one step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        own, new = [], []
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                own.append(self.average[name])
                new.append(value.detach())
            else:
                self.average[name].copy_(value)
        torch._foreach_lerp_(own, new, 1 - decay)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"steps": self.steps, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        average, steps = state["average"], state["steps"]
        assert isinstance(average, Mapping) and isinstance(steps, int)
        self.steps = steps
        for name, value in average.items():
            self.average[name].copy_(value)
