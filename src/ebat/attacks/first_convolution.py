"""The convolution that reads the image, with the normalisation before it, and its gradient on a processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# An image has few channels. With more the convolution library's own gradient is as good.
MOST_CHANNELS = 4


class FirstConvolution(nn.Module):
    """``conv((x - mean) / std)`` as one convolution, whose input gradient is a matrix product and a sum over windows.

    The library's gradient of a convolution with three input channels fills three of sixteen lanes of a vector: in a
    small network it is a third of the backward pass, and takes twice as long as this one. What zero padding adds around
    normalised images is the mean colour around plain ones; ``std`` goes into the weights.

    Args:
        conv: :meth:`fits` it.
        mean, std: ``[1, C, 1, 1]`` or ``[1, 1, 1, 1]``; ``None`` for images that are not normalised.
        memory_format: of what comes out.
    """

    mean: Tensor

    def __init__(
        self, conv: nn.Conv2d, mean: Tensor | None, std: Tensor | None, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        weight, channels = conv.weight.detach(), (1, conv.in_channels, 1, 1)
        mean = weight.new_zeros(channels) if mean is None else mean.to(weight).expand(channels)
        if std is not None:
            weight = weight / std.to(weight)
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("weight", weight.clone(memory_format=memory_format))
        self.register_buffer("bias", bias - (weight * mean).sum((1, 2, 3)))
        assert isinstance(conv.padding, tuple)
        self.stride, self.padding, self.memory_format = conv.stride, conv.padding, memory_format

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether ``conv`` is one that this class can stand for, to advantage."""
        return (
            type(conv) is nn.Conv2d
            and conv.weight.device.type == "cpu"
            and conv.in_channels <= MOST_CHANNELS
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.padding_mode == "zeros"
            and isinstance(conv.padding, tuple)
        )

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = _Convolution.apply(
            images, self.mean, self.weight, self.bias, self.stride, self.padding, self.memory_format
        )  # type: ignore[no-untyped-call]
        return found


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        mean: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        memory_format: torch.memory_format,
    ) -> Tensor:
        count, _, height, width = images.shape
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = (height, width), stride, padding
        (top, left), frame = padding, mean.expand(count, -1, height + 2 * padding[0], width + 2 * padding[1])
        frame = frame.contiguous(memory_format=memory_format)
        frame[:, :, top : top + height, left : left + width] = images
        return F.conv2d(frame, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (gradient,) = ctx.saved_tensors, upstream
        # [C kh kw, O] @ [n, O, L]: what each window of the image gets; fold adds up where windows overlap
        windows = weight.flatten(1).t() @ gradient.flatten(2)
        images = F.fold(windows, ctx.size, weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        return images, None, None, None, None, None, None
