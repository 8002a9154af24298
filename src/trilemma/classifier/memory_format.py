"""The memory format of a network on a device: channels-last where it is faster and safe."""

from __future__ import annotations

import torch
from torch import nn

# oneDNN on AVX2 writes beyond its buffers in the backward pass of channels-last convolutions with fewer input channels
# than a vector register holds (observed with 4 channels, a 1x1 kernel and stride 2, torch 2.13: the process aborts).
MIN_CHANNELS = 8
# Largest number of image channels. The first convolution reads a contiguous image, whatever the format of its weights.
MAX_IMAGE_CHANNELS = 3


def narrow_convolution(network: nn.Module) -> str | None:
    """The name of the first convolution with fewer than 8 input channels; ``None`` if there is none.

    The network's first convolution is exempt if it has at most 3 input channels, since it reads the image.
    """
    first = True
    name: str
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        channels = module.in_channels
        if channels < MIN_CHANNELS and not (first and channels <= MAX_IMAGE_CHANNELS):
            return name
        first = False
    return None


def contiguous_is_faster(network: nn.Module) -> bool:
    """Whether a part of ``network`` says so by an attribute of this name."""
    return any(getattr(module, "contiguous_is_faster", False) for module in network.modules())


def preferred_memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Returns channels-last, or contiguous on a CPU for some networks.

    They are those with GroupNorm (1/7 slower in channels-last), with narrow convolutions (unsafe), and those that say
    so by an attribute ``contiguous_is_faster``.
    """
    if device.type == "cpu":
        if contiguous_is_faster(network):
            return torch.contiguous_format
        if any(isinstance(module, nn.GroupNorm) for module in network.modules()):
            return torch.contiguous_format
        if narrow_convolution(network) is not None:
            return torch.contiguous_format
    return torch.channels_last


def set_memory_format(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Converts every four-dimensional parameter and buffer of ``network`` to ``memory_format``, in place."""
    for weight in (*network.parameters(), *network.buffers()):
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)
