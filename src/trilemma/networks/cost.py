"""The cost of a network: number of parameters and of multiply-accumulates, without running it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# BatchNorm in train mode raises an error for one image whose feature maps are 1x1, as those of small images become.
IMAGES = 2
FLOPS_PER_MAC = 2


def count_parameters(network: nn.Module) -> int:
    """The number of trainable parameters of ``network``; shared parameters count once."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates per image of a forward pass, in convolutions, linear layers and attention.

    Only shapes are propagated (meta device), so that no memory is allocated and nothing is computed. ``network``, its
    mode and its running statistics are left unchanged.

    Args:
        network: takes images ``[N, C, H, W]``; on any device, including the meta device.
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
