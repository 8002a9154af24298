"""The convolution that reads the image, with the normalisation before it, and its gradient on a processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# An image has few channels. With more the convolution library's own gradient is as good.
MOST_CHANNELS = 4


class FirstConvolution(nn.Module):
    """``conv((x - mean) / std)`` in one, whose input gradient is a matrix product and a sum over windows.

    The library's gradient of a convolution with three input channels fills three of sixteen lanes of a vector: in a
    small network it is a third of the backward pass, and takes twice as long as this one. The mean stays outside, where
    zero padding means what it meant; ``std`` goes into the weights.

    Args:
        conv: :meth:`fits` it.
        mean, std: ``[1, C, 1, 1]`` or ``[1, 1, 1, 1]``; ``None`` for images that are not normalised.
        memory_format: of what comes out.
    """

    mean: Tensor | None

    def __init__(
        self, conv: nn.Conv2d, mean: Tensor | None, std: Tensor | None, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        weight = conv.weight.detach() if std is None else conv.weight.detach() / std.to(conv.weight)
        self.register_buffer("mean", mean)
        self.register_buffer("weight", weight.clone(memory_format=memory_format))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self.stride, self.padding = conv.stride, conv.padding

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
            images if self.mean is None else images - self.mean,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
        )  # type: ignore[no-untyped-call]
        return found


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = images.shape, stride, padding
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (gradient,) = ctx.saved_tensors, upstream
        (count, channels, height, width), (down, right) = ctx.shape, ctx.stride
        (top, left), (rows, columns) = ctx.padding, gradient.shape[2:]
        # [C kh kw, O] @ [n, O, L]: what each pixel of each window gets
        windows = (weight.flatten(1).t() @ gradient.flatten(2)).view(
            count, channels, *weight.shape[2:], rows, columns
        )
        frame = gradient.new_zeros(count, channels, height + 2 * top, width + 2 * left)
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                below, beside = i + down * (rows - 1) + 1, j + right * (columns - 1) + 1
                frame[:, :, i:below:down, j:beside:right] += windows[:, :, i, j]
        images = frame[:, :, top : top + height, left : left + width].contiguous()
        return images, None, None, None, None
