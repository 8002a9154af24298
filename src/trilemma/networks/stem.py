"""Convolutions that read images: their gradients on a CPU, in a fraction of oneDNN's time.

oneDNN's gradient of a convolution with one to four input channels uses as many of eight or more vector lanes. The input
gradient is here a matrix product and a sum over windows, or with colour and strides a convolution of stride 1; in a
small network it is a third of the backward pass, and takes half as long so.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as convolution_gradients

# With more input channels than this, oneDNN's own input gradient is as fast.
MAX_CHANNELS = 4
# Vector lanes: with fewer output channels, a convolution is slower than a matrix product and a sum over windows.
_LANES = 8
# Largest number of values that an input gradient by windows holds at once, to stay in the cache.
_BLOCK = 2**18


def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether :func:`convolution` computes ``conv``, and its gradients are faster than oneDNN's."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.weight.device.type == "cpu"
        and conv.in_channels <= MAX_CHANNELS
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and isinstance(conv.padding, tuple)
    )


class StemConvolution(nn.Conv2d):
    """``nn.Conv2d`` with the gradients of this module where they are faster; the same parameters and results."""

    def forward(self, input: Tensor) -> Tensor:
        # An exported or compiled network has no backward pass, or makes its own.
        plain = not torch.is_grad_enabled() or torch.compiler.is_compiling()
        if plain or input.dim() != 4 or not fits(self):
            return super().forward(input)
        assert isinstance(self.padding, tuple)
        return convolution(input, self.weight, self.bias, self.stride, self.padding)


def convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """``F.conv2d(images, weight, bias, stride, padding)`` on a CPU, with cheap gradients."""
    output: Tensor = _Convolution.apply(images, weight, bias, stride, padding)  # type: ignore[no-untyped-call]
    return output


class _Convolution(torch.autograd.Function):
    """``F.conv2d`` with the gradients of this module."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(images if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.stride, ctx.padding = images.shape, stride, padding
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (images, weight), (gradient,), stride, padding = ctx.saved_tensors, upstream, ctx.stride, ctx.padding
        # Under autocast the output, and so its gradient, has the lower precision.
        gradient = gradient.to(weight)
        for_images, for_weight, for_bias, *_ = ctx.needs_input_grad
        of_images = of_weight = of_bias = None
        if for_images:
            of_images = input_gradient(gradient, weight, stride, padding, ctx.shape)
        if for_weight and weight.shape[1] == 1 and _in_blocks(weight, stride, padding):
            of_weight = _weight_gradient_by_blocks(images, weight, gradient)
        elif for_weight:
            images = images.to(weight)
            of_weight = convolution_gradients.conv2d_weight(images, weight.shape, gradient, stride, padding)
        if for_bias:
            of_bias = gradient.sum((0, 2, 3))
        return of_images, of_weight, of_bias, None, None


def input_gradient(
    gradient: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], shape: torch.Size
) -> Tensor:
    """The input gradient of :func:`convolution`, of operations that can be differentiated again.

    Args:
        gradient: with respect to the output, ``[n, O, h, w]``.
        weight: ``[O, C, kh, kw]``.
        stride, padding: of the convolution.
        shape: of its input, ``(n, C, H, W)``.

    Returns:
        ``[n, C, H, W]``.
    """
    down, right = stride
    if down == right and weight.shape[1] * down**2 >= _LANES:
        return _gradient_by_convolution(gradient, weight, down, padding, shape)
    values = weight[0].numel() * gradient.shape[2] * gradient.shape[3]
    parts = gradient.split(max(1, _BLOCK // values))
    return torch.cat([_gradient_by_windows(part, weight, stride, padding, shape) for part in parts])


def _gradient_by_windows(
    gradient: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], shape: torch.Size
) -> Tensor:
    """The input gradient of a convolution as a matrix product and a sum over windows; ``shape`` is the input's."""
    (_, channels, height, width), (down, right), (top, left) = shape, stride, padding
    count, _, out_height, out_width = gradient.shape
    # [C kh kw, O] @ [n, O, L]: gradient with respect to each pixel of each window.
    windows = weight.flatten(1).t() @ gradient.flatten(2)
    # The sum below adds adjacent pixels and is faster where windows overlap most.
    if max(stride) > 1:
        return F.fold(windows, (height, width), weight.shape[2:], padding=padding, stride=stride)
    windows = windows.view(count, channels, *weight.shape[2:], out_height, out_width)
    padded = gradient.new_zeros(count, channels, height + 2 * top, width + 2 * left)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            bottom, end = i + down * (out_height - 1) + 1, j + right * (out_width - 1) + 1
            padded[:, :, i:bottom:down, j:end:right] += windows[:, :, i, j]
    return padded[:, :, top : top + height, left : left + width].contiguous()


def _gradient_by_convolution(
    gradient: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], shape: torch.Size
) -> Tensor:
    """The same for a stride above 1 in both directions: a convolution of stride 1 that returns ``stride**2`` pixels.

    Pixel ``(s i + a, s j + b)`` of the padded input meets the kernel's rows ``a, s + a, ...`` and columns alike, so
    that all pixels of one ``(a, b)`` are a correlation with a part of the kernel: ``C s**2`` output channels, which
    fill the vector lanes that C leaves idle.
    """
    out_channels, channels, *kernel = weight.shape
    rows, columns = (-(-size // stride) for size in kernel)
    parts = F.pad(weight, (0, columns * stride - kernel[1], 0, rows * stride - kernel[0]))
    parts = parts.view(out_channels, channels, rows, stride, columns, stride).permute(3, 5, 1, 0, 2, 4)
    parts = parts.flip(4, 5).reshape(stride**2 * channels, out_channels, rows, columns)
    if gradient.is_contiguous(memory_format=torch.channels_last):
        parts = parts.contiguous(memory_format=torch.channels_last)
    pixels = F.conv2d(gradient, parts, padding=(rows - 1, columns - 1))
    pixels = pixels.unflatten(1, (stride, stride, channels))
    # Pixels behind the last window have no gradient.
    input_gradient = gradient.new_zeros(shape)
    for row in range(stride):
        for column in range(stride):
            # Position of this pixel in the padded input, as (s i + a, s j + b).
            (i, a), (j, b) = divmod(row + padding[0], stride), divmod(column + padding[1], stride)
            target, source = input_gradient[:, :, row::stride, column::stride], pixels[:, a, b, :, i:, j:]
            height, width = (min(target.shape[axis], source.shape[axis]) for axis in (2, 3))
            target[:, :, :height, :width] = source[:, :, :height, :width]
    return input_gradient


def _in_blocks(weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Whether a convolution of blocks of 2x2 pixels is the same: kernel 4, stride 2, padding 1."""
    return weight.shape[2:] == (4, 4) and stride == (2, 2) and padding == (1, 1)


def _weight_gradient_by_blocks(images: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """The weight gradient of a 4x4 convolution of stride 2 and padding 1 as that of a 2x2 convolution of stride 1.

    The images are cut into blocks of 2x2 pixels, each of which becomes 4 C channels. The products are the same; with
    one channel they take two thirds of the time.
    """
    outputs, channels = weight.shape[:2]
    height, width = images.shape[2:]
    blocks = F.pixel_unshuffle(F.pad(images, (1, 1 - width % 2, 1, 1 - height % 2)), 2)
    of_blocks = convolution_gradients.conv2d_weight(blocks, (outputs, 4 * channels, 2, 2), gradient)
    # pixel_unshuffle puts row and column in a block behind the channel: to [O, C, block row, row in block, block
    # column, column in block].
    kernel = of_blocks.view(outputs, channels, 2, 2, 2, 2).permute(0, 1, 4, 2, 5, 3)
    of_weight: Tensor = kernel.reshape(weight.shape)
    return of_weight
