"""Which memory format a network should have on a device: channels-last where it pays and is safe."""

from __future__ import annotations

import torch
from torch import nn

# oneDNN on AVX2 writes beyond its buffers in the backward pass of channels-last convolutions with fewer input channels
# than one vector holds (seen with 4 channels, a 1x1 kernel and stride 2, torch 2.13: the process aborts).
LEAST_CHANNELS = 8
# Channels of an image itself: the first convolution reads them from a contiguous image, whatever its weights' format.
MOST_IMAGE_CHANNELS = 3


def narrow_convolution(network: nn.Module) -> str | None:
    """The name of a convolution, other than the first, whose input has fewer than 8 channels; ``None`` without one.

    The image's own convolutions, of at most 3 input channels, do not count unless such a layer is not the first.
    """
    first = True
    name: str
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        channels = module.in_channels
        if channels < LEAST_CHANNELS and not (first and channels <= MOST_IMAGE_CHANNELS):
            return name
        first = False
    return None


def preferred_memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels-last, except on a CPU for GroupNorm (a seventh slower) and for narrow convolutions (unsafe)."""
    if device.type == "cpu":
        if any(isinstance(module, nn.GroupNorm) for module in network.modules()):
            return torch.contiguous_format
        if narrow_convolution(network) is not None:
            return torch.contiguous_format
    return torch.channels_last


def set_memory_format(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Puts every four-dimensional weight and buffer of ``network`` into ``memory_format``, in place."""
    for weight in (*network.parameters(), *network.buffers()):
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)
