"""Convolutions with 3x3 kernels in fewer multiplications, for wide networks on a CPU.

A tile of 4x4 outputs depends on a window of 6x6 inputs. With three fixed matrices A, B and G (Toom-Cook interpolation
at six points, one of them infinity; Winograd 1980, Lavin and Gray 2016, 1509.09308)::

    tile = A' [sum over input channels of (G kernel G') * (B' window B)] A

where ``*`` is the product by elements: 36 multiplications for each pair of channels instead of 144. Over many tiles
that is 36 matrix products, and the transforms are matrix products too.

Rounding: with the points 0, 5/8, -5/8, 3/2, -3/2 and infinity the error is 1.7 times that of a direct convolution in
float32 (128 channels, normal inputs); with the usual 0, 1, -1, 2, -2 it is 4 times.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as convolution_gradients
from torch.overrides import TorchFunctionMode

# Sides of a tile of outputs, of the window of inputs that it depends on, and of the kernel.
_TILE, _WINDOW, _KERNEL = 4, 6, 3
_POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
# Number of tiles that are transformed at once: fewer make small matrix products, more leave the cache.
_TILES_AT_ONCE = 64
# An image of more tiles leaves the cache by itself.
_MOST_TILES = 256
# With fewer channels than this on both sides the transforms take longer than the multiplications that they save.
_FEWEST_CHANNELS = 64
# Times in units of one multiplication of a direct convolution, measured on AVX2 with 64 to 512 channels
# (benchmarks/winograd.py): of a tile per pair of channels, and per channel with one thread and with several, since
# copies gain less from threads; of a pair of channels when a transformed kernel is read, and when it is made too.
_PER_PAIR, _PER_CHANNEL, _PER_CHANNEL_THREADS = 50, 2800, 5000
_READ_KERNEL, _MAKE_KERNEL = 400, 3500
# oneDNN's weight gradient takes half as long again as its forward pass.
_DIRECT_WEIGHT_GRADIENT = 1.5


def _kronecker(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(np.kron(matrix, matrix)).float()


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """The transforms of an output, an input and a kernel, as matrices for flattened ones.

    Returns:
        ``[16, 36]``, ``[36, 36]`` and ``[36, 9]``: ``A'``, ``B'`` and ``G``, each times itself (Kronecker product).
    """
    points = np.array(_POINTS)
    finite = len(points)
    outputs, inputs, kernels = (
        np.zeros(shape) for shape in ((_TILE, _WINDOW), (_WINDOW, _WINDOW), (_WINDOW, _KERNEL))
    )
    for i, point in enumerate(points):
        others = np.delete(points, i)
        outputs[:, i] = point ** np.arange(_TILE)
        kernels[i] = point ** np.arange(_KERNEL) / np.prod(point - others)
        # The product of (x - other) over all others, lowest power first.
        inputs[i, :finite] = np.poly(others)[::-1]
    # The point at infinity takes the highest power.
    outputs[-1, finite] = kernels[finite, -1] = 1.0
    inputs[finite] = np.poly(points)[::-1]
    return _kronecker(outputs), _kronecker(inputs), _kronecker(kernels)


_FROM_PRODUCTS, _OF_WINDOW, _OF_KERNEL = _transforms()
_OF_PRODUCTS = _FROM_PRODUCTS.t()


def pays(images: Tensor, weight: Tensor, *, transformed: bool, direct: float = 1.0) -> bool:
    """Whether a convolution is faster by tiles than as oneDNN does it.

    Args:
        images: ``[n, C, H, W]``.
        weight: ``[O, C, 3, 3]``.
        transformed: whether the transformed kernel is at hand.
        direct: time of the direct computation, in that of a direct convolution.
    """
    count, _, height, width = images.shape
    tiles = _tiles(height) * _tiles(width)
    channels, pairs = sum(weight.shape[:2]), math.prod(weight.shape[:2])
    per_channel = _PER_CHANNEL if torch.get_num_threads() == 1 else _PER_CHANNEL_THREADS
    tiled = count * tiles * (_PER_PAIR * pairs + per_channel * channels)
    tiled += pairs * (_READ_KERNEL if transformed else _MAKE_KERNEL)
    return tiles <= _MOST_TILES and tiled < direct * count * _KERNEL**2 * pairs * height * width


def transformed_kernel(weight: Tensor) -> Tensor:
    """``G kernel G'`` for every pair of channels, ``[O, C, 3, 3]`` to ``[36, C, O]``."""
    return _transformed(weight, _OF_KERNEL).transpose(1, 2)


def transposed_kernel(weight: Tensor) -> Tensor:
    """The transformed kernel of the convolution that gives the input gradient: flipped, ``[36, O, C]``."""
    return _transformed(weight, _OF_KERNEL.flip(1))


def _transformed(weight: Tensor, transform: Tensor) -> Tensor:
    """``transform [36, 9]`` of every kernel, ``[O, C, 3, 3]`` to ``[36, O, C]``; one copy if in channels-last."""
    kernels = weight.permute(2, 3, 0, 1)
    return (transform @ kernels.reshape(_KERNEL**2, -1)).view(-1, *weight.shape[:2])


def convolution(images: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(images, weight, bias, padding=1)`` by tiles.

    Args:
        images: ``[n, C, H, W]``, float32, on a CPU, in any memory format.
        kernel: ``[36, C, O]``, of :func:`transformed_kernel`.
        bias: ``[O]``.

    Returns:
        ``[n, O, H, W]`` in channels-last.
    """
    count, _, height, width = images.shape
    down, right, out_channels = _tiles(height), _tiles(width), kernel.shape[2]
    output = images.new_empty(count, down, _TILE, right, _TILE, out_channels)
    for part, target in zip(_parts(images), output.split(_at_once(down * right)), strict=True):
        products = torch.bmm(_transformed_windows(part), kernel)
        tiles = (_FROM_PRODUCTS @ products.flatten(1)).view(
            _TILE, _TILE, len(part), down, right, out_channels
        )
        if bias is not None:
            tiles += bias
        target.copy_(tiles.permute(2, 3, 0, 4, 1, 5))
    output = output.view(count, down * _TILE, right * _TILE, out_channels)[:, :height, :width]
    return output.contiguous().permute(0, 3, 1, 2)


def weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of :func:`convolution` with respect to its weights.

    Args:
        images: ``[n, C, H, W]``.
        gradient: with respect to the output, ``[n, O, H, W]``.

    Returns:
        ``[O, C, 3, 3]`` in channels-last.
    """
    in_channels, out_channels = images.shape[1], gradient.shape[1]
    total = images.new_zeros(_WINDOW**2, out_channels, in_channels)
    for part, upstream in zip(_parts(images), _parts(gradient), strict=True):
        total.baddbmm_(_transformed_tiles(upstream).transpose(1, 2), _transformed_windows(part))
    weights = _OF_KERNEL.t() @ total.flatten(1)
    return weights.view(_KERNEL, _KERNEL, out_channels, in_channels).permute(2, 3, 0, 1)


def _tiles(side: int) -> int:
    """Number of tiles along a side."""
    return math.ceil(side / _TILE)


def _at_once(tiles: int) -> int:
    """Number of images of so many tiles that are transformed at once."""
    return math.ceil(_TILES_AT_ONCE / tiles)


def _parts(images: Tensor) -> tuple[Tensor, ...]:
    """``[n, C, H, W]`` as a few images ``[k, H, W, C]`` at a time."""
    tiles = _tiles(images.shape[2]) * _tiles(images.shape[3])
    parts: tuple[Tensor, ...] = images.permute(0, 2, 3, 1).split(_at_once(tiles))
    return parts


def _transformed_windows(images: Tensor) -> Tensor:
    """``B' window B`` of every tile: ``[k, H, W, C]`` to ``[36, k tiles, C]``."""
    _, height, width, channels = images.shape
    below, beyond = (_tiles(side) * _TILE - side + 1 for side in (height, width))
    padded = F.pad(images, (0, 0, 1, beyond, 1, below))
    # [6, 6, k, down, right, C]
    windows = padded.unfold(1, _WINDOW, _TILE).unfold(2, _WINDOW, _TILE).permute(4, 5, 0, 1, 2, 3)
    transformed: Tensor = _OF_WINDOW @ windows.reshape(_WINDOW**2, -1)
    return transformed.view(_WINDOW**2, -1, channels)


def _transformed_tiles(gradient: Tensor) -> Tensor:
    """``A tile A'`` of every tile: ``[k, H, W, O]`` to ``[36, k tiles, O]``."""
    _, height, width, channels = gradient.shape
    down, right = _tiles(height), _tiles(width)
    padded = F.pad(gradient, (0, 0, 0, right * _TILE - width, 0, down * _TILE - height))
    # [4, 4, k, down, right, O]
    tiles = padded.unflatten(2, (right, _TILE)).unflatten(1, (down, _TILE)).permute(2, 4, 0, 1, 3, 5)
    transformed: Tensor = _OF_PRODUCTS @ tiles.reshape(_TILE**2, -1)
    return transformed.view(_WINDOW**2, -1, channels)


def fits(weight: Tensor, *geometry: Any) -> bool:
    """Whether a convolution can be computed by tiles, and is wide enough to be faster for some images.

    Args:
        weight: ``[O, C / groups, h, w]``.
        geometry: stride, padding, dilation and groups, as ``F.conv2d`` takes them.
    """
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[2:] == (_KERNEL, _KERNEL)
        and min(weight.shape[:2]) >= _FEWEST_CHANNELS
        and geometry == ((1, 1), (1, 1), (1, 1), 1)
    )


class FixedConvolution(nn.Module):
    """A convolution whose weights do not change, with its transformed kernels.

    Args:
        conv: a convolution for which :meth:`fits` is true.
    """

    weight: Tensor
    bias: Tensor | None
    kernel: Tensor
    transposed: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self.register_buffer("kernel", transformed_kernel(weight).contiguous())
        self.register_buffer("transposed", transposed_kernel(weight))

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether this class can replace ``conv`` and is faster for some images."""
        return (
            type(conv) is nn.Conv2d
            and conv.padding_mode == "zeros"
            and fits(conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups)
        )

    def forward(self, images: Tensor) -> Tensor:
        if _takes(images, self.weight):
            return _convolve(images, self.weight, self.bias, self.kernel, self.transposed)
        return F.conv2d(images, self.weight, self.bias, padding=1)


def has_wide_convolutions(network: nn.Module) -> bool:
    """Whether a convolution of ``network``, on its device, is faster by tiles for some images."""
    return any(FixedConvolution.fits(module) for module in network.modules())


class WinogradConvolutions(TorchFunctionMode):
    """A context in which ``F.conv2d`` computes by tiles wherever that is faster; enter it as often as you like.

    Results change by rounding. A convolution under autocast is left as it is.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func is torch.conv2d
            and len(args) == _CONV2D_ARGUMENTS
            and not kwargs
            and fits(args[1], *args[3:])
            and _takes(*args[:2])
            and _gains(*args[:2])
        ):
            return _convolve(*args[:3])
        return func(*args, **(kwargs or {}))


# images, weight, bias, stride, padding, dilation, groups
_CONV2D_ARGUMENTS = 7


def _takes(images: Tensor, weight: Tensor) -> bool:
    """Whether the images are a batch for the weights, and the result is computed in float32."""
    return (
        images.dim() == 4
        and images.shape[1] == weight.shape[1]
        and images.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _gains(images: Tensor, weight: Tensor) -> bool:
    """Whether the forward pass, or else the weight gradient, is faster by tiles."""
    of_weight = weight.requires_grad and pays(
        images, weight, transformed=False, direct=_DIRECT_WEIGHT_GRADIENT
    )
    return of_weight or pays(images, weight, transformed=False)


def _convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Tensor | None = None,
    transposed: Tensor | None = None,
) -> Tensor:
    output: Tensor = _Convolution.apply(images, weight, bias, kernel, transposed)  # type: ignore[no-untyped-call]
    return output


class _Convolution(torch.autograd.Function):
    """``F.conv2d(images, weight, bias, padding=1)``, each of its three products by tiles where that is faster."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: Tensor | None,
        transposed: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(images if ctx.needs_input_grad[1] else None, weight, transposed)
        if not pays(images, weight, transformed=kernel is not None):
            return F.conv2d(images, weight, bias, padding=1)
        return convolution(images, transformed_kernel(weight) if kernel is None else kernel, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (images, weight, transposed), (gradient,) = ctx.saved_tensors, upstream
        for_images, for_weight, for_bias, *_ = ctx.needs_input_grad
        # A gradient that will be differentiated needs a graph, which the functions above do not record.
        direct = torch.is_grad_enabled()
        of_images = of_weight = of_bias = None
        if for_images:
            flipped = weight.transpose(0, 1)
            if direct or not pays(gradient, flipped, transformed=transposed is not None):
                of_images = F.conv_transpose2d(gradient, weight, padding=1)
            else:
                of_images = convolution(
                    gradient, transposed_kernel(weight) if transposed is None else transposed
                )
        if for_weight:
            if direct or not pays(images, weight, transformed=False, direct=_DIRECT_WEIGHT_GRADIENT):
                of_weight = convolution_gradients.conv2d_weight(images, weight.shape, gradient, padding=1)
            else:
                of_weight = weight_gradient(images, gradient)
        if for_bias:
            of_bias = gradient.sum((0, 2, 3))
        return of_images, of_weight, of_bias, None, None
