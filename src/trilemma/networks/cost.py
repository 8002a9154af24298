"""What a network costs: parameters and multiply-accumulates, without running it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# With one image, BatchNorm in train mode refuses the 1x1 maps that a small image ends in.
IMAGES = 2
FLOPS_PER_MAC = 2


def count_parameters(network: nn.Module) -> int:
    """How many trainable numbers ``network`` has; shared ones count once."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass per image, in convolutions, linear layers and attention.

    Shapes alone are propagated (meta device), so WRN-28-10 takes no memory and no arithmetic; ``network``
    itself, its mode and its statistics stay as they are.

    Args:
        network: ``[N, C, H, W]`` to anything, on any device, the meta device included.
        image_shape: ``(C, H, W)``.
    """
    tensors = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }
    images = torch.empty(IMAGES, *image_shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(network, tensors, (images,))
    flops: int = counter.get_total_flops()
    return flops // (FLOPS_PER_MAC * IMAGES)
