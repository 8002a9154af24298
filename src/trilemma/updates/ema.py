"""Exponential moving average of weights and BatchNorm buffers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """``avg <- d avg + (1 - d) w`` with ``d = min(decay, (1 + n) / (10 + n))`` at step n.

    The smaller d of the first steps keeps the initial weights from dominating. Buffers that are not floating point
    are copied.

    Args:
        network: its parameters and buffers are averaged.
        decay: the final d, such as 0.9995.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.average = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Updates the average with the weights of ``network`` after one step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averages, values = [], []
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[name])
                values.append(value.detach())
            else:
                self.average[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """Returns the number of steps and the average, whose tensors are not copied."""
        return {"steps": self.steps, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Copies the state that :meth:`state_dict` returned into this average."""
        average, steps = state["average"], state["steps"]
        assert isinstance(average, Mapping) and isinstance(steps, int)
        self.steps = steps
        for name, value in average.items():
            self.average[name].copy_(value)
