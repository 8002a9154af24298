"""Random numbers that depend on the image, not on its position in a batch.

Each image has one integer seed. Its random numbers are a function of (seed, stream, element), computed by a
counter-based hash. They are therefore independent of the batch size, of the other images of the batch and of the device
(up to the rounding of ``log`` and ``cos``). With a ``torch.Generator`` they would depend on the order of the calls.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trilemma.transfers import sent

# Constants of the finaliser of splitmix64 (Steele, Lea and Flood, 2014) as signed 64-bit integers; products overflow.
_GOLDEN = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    """A Python integer reduced to int64, as int64 tensors overflow."""
    return (value + 2**63) % 2**64 - 2**63


def _mix(value: Tensor) -> Tensor:
    """The finaliser of splitmix64, a hash of int64."""
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def image_seeds(count: int, generator: torch.Generator | None, device: torch.device | str = "cpu") -> Tensor:
    """One seed per image, int64 ``[count]``, drawn from ``generator`` (torch's default if ``None``)."""
    source = generator.device if generator is not None else torch.device("cpu")
    seeds = torch.randint(0, 2**62, (count,), generator=generator, device=source)
    return sent(seeds, device)


def _bits(seeds: Tensor, stream: int, count: int) -> Tensor:
    """64 hashed bits per element, int64 ``[N, count]``."""
    keys = _mix(_mix(seeds) + _wrap(stream * _GOLDEN))
    counters = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    return _mix(keys[:, None] + counters)


def _open_interval(bits: Tensor) -> Tensor:
    """Converts the top 23 bits to float32 in (0, 1), exactly; the result is never 0 or 1."""
    return (_shift(bits, 41).float() + 0.5) * 2.0**-23


def uniform(seeds: Tensor, stream: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """U(0, 1) noise, float32 ``[N, *shape]``; never exactly 0 or 1.

    Args:
        seeds: int64 ``[N]``, one per image.
        stream: number of the random stream of the image, such as a step number.
        shape: shape of one image.
    """
    return _open_interval(_bits(seeds, stream, math.prod(shape))).view(len(seeds), *shape)


def normal(seeds: Tensor, stream: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """N(0, 1) noise, float32 ``[N, *shape]``, by the Box-Muller transform; arguments as of :func:`uniform`."""
    count = math.prod(shape)
    bits = _bits(seeds, stream, (count + 1) // 2)
    radius = _open_interval(bits).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFF).float().mul_(2.0 * math.pi * 2.0**-24)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :count].reshape(len(seeds), *shape)


def derive(seeds: Tensor, stream: int) -> Tensor:
    """Derives new seeds, int64 ``[N]``, from ``seeds``; independent for each ``stream`` (a restart or a purpose)."""
    return _mix(seeds + _wrap((stream + 1) * _GOLDEN))
