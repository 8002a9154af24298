"""Copies of small tensors from the CPU to an accelerator that do not make the CPU wait for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """``values`` on ``device``, copied without waiting for what is queued there.

    A plain ``to`` from the CPU waits until the device is idle, so a training step that draws its random numbers on the
    CPU would wait several times. The copy to the CPU does wait, since its values would not be valid otherwise.
    """
    return values.to(device, non_blocking=values.device.type == "cpu")
