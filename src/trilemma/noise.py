"""Random numbers that depend on the image, not on its position in a batch.

Each image has one integer seed. Its random numbers are a function of (seed, stream, element), computed by a
counter-based hash. They are therefore independent of the batch size, of the other images of the batch and of the device
(up to the rounding of ``log`` and ``cos``). With a ``torch.Generator`` they would depend on the order of the calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.transfers import sent

# Constants of the finaliser of splitmix64 (Steele, Lea and Flood, 2014) as signed 64-bit integers; products overflow.
_GOLDEN = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685
# Largest number of hashes that a CPU computes at once: its caches hold them and their temporaries.
_BLOCK = 2**15


def _unsigned(value: Tensor) -> Any:
    """The int64 of a CPU as an array of uint64, which NumPy shifts and multiplies in half of torch's time."""
    return value.numpy().view(np.uint64)


def _shift(value: Tensor, bits: int, out: Tensor) -> Tensor:
    """Writes the logical right shift of int64 to ``out``."""
    if value.device.type == "cpu":
        np.right_shift(_unsigned(value), np.uint64(bits), out=_unsigned(out))
        return out
    # Torch shifts arithmetically.
    return torch.bitwise_right_shift(value, bits, out=out).bitwise_and_((1 << (64 - bits)) - 1)


def _multiply(value: Tensor, factor: int) -> Tensor:
    """Multiplies int64 in place, modulo 2^64."""
    if value.device.type == "cpu":
        np.multiply(_unsigned(value), np.uint64(factor % 2**64), out=_unsigned(value))
        return value
    return value.mul_(factor)


def _wrap(value: int) -> int:
    """A Python integer reduced to int64, as int64 tensors overflow."""
    return (value + 2**63) % 2**64 - 2**63


def _mix_but_last(value: Tensor, shifted: Tensor) -> Tensor:
    """The finaliser of splitmix64, a hash of int64, without its last step ``value ^ (value >> 31)``; in place.

    The last step does not change the top 31 bits. ``shifted`` is scratch memory of the same shape.
    """
    for bits, factor in ((30, _MIX_1), (27, _MIX_2)):
        _multiply(value.bitwise_xor_(_shift(value, bits, shifted)), factor)
    return value


def _mix(value: Tensor) -> Tensor:
    """The finaliser of splitmix64."""
    shifted = torch.empty_like(value)
    value = _mix_but_last(value.clone(), shifted)
    return value.bitwise_xor_(_shift(value, 31, shifted))


def image_seeds(count: int, generator: torch.Generator | None, device: torch.device | str = "cpu") -> Tensor:
    """One seed per image, int64 ``[count]``, drawn from ``generator`` (torch's default if ``None``)."""
    source = generator.device if generator is not None else torch.device("cpu")
    seeds = torch.randint(0, 2**62, (count,), generator=generator, device=source)
    return sent(seeds, device)


def _hashes(seeds: Tensor, stream: int, count: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields the places of some images, their hashes but for the last step, int64 ``[n, count]``, and scratch memory.

    The scratch memory is like the hashes. The next images reuse both.
    """
    keys = _mix(_mix(seeds) + _wrap(stream * _GOLDEN))[:, None]
    counters = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    images = max(1, _BLOCK // max(1, count)) if seeds.device.type == "cpu" else max(1, len(seeds))
    value, scratch = (keys.new_empty(min(images, len(seeds)), count) for _ in range(2))
    for first in range(0, len(seeds), images):
        part = slice(first, first + images)
        used = slice(len(keys[part]))
        torch.add(keys[part], counters, out=value[used])
        yield part, _mix_but_last(value[used], scratch[used]), scratch[used]


def _open_interval(bits: Tensor, scratch: Tensor, out: Tensor) -> Tensor:
    """Writes the top 23 of 64 bits to ``out`` as float32 in (0, 1), exactly; the result is never 0 or 1."""
    return out.copy_(_shift(bits, 41, scratch)).add_(0.5).mul_(2.0**-23)


def uniform(seeds: Tensor, stream: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """U(0, 1) noise, float32 ``[N, *shape]``; never exactly 0 or 1.

    Args:
        seeds: int64 ``[N]``, one per image.
        stream: number of the random stream of the image, such as a step number.
        shape: shape of one image.
    """
    result = torch.empty(len(seeds), math.prod(shape), device=seeds.device)
    for part, bits, scratch in _hashes(seeds, stream, result.shape[1]):
        _open_interval(bits, scratch, result[part])
    return result.view(len(seeds), *shape)


def normal(seeds: Tensor, stream: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """N(0, 1) noise, float32 ``[N, *shape]``, by the Box-Muller transform; arguments as of :func:`uniform`."""
    count = math.prod(shape)
    half = (count + 1) // 2
    result = torch.empty(len(seeds), count, device=seeds.device)
    radius, angle, wave = (torch.empty(0, device=seeds.device) for _ in range(3))
    for part, bits, scratch in _hashes(seeds, stream, half):
        for memory in (radius, angle, wave):
            memory.resize_(bits.shape)
        _open_interval(bits, scratch, radius).log_().mul_(-2.0).sqrt_()
        # The last step of the hash, whose lowest 24 bits need no logical shift.
        torch.bitwise_right_shift(bits, 31, out=scratch)
        angle.copy_(scratch.bitwise_xor_(bits).bitwise_and_(0xFFFFFF)).mul_(2.0 * math.pi * 2.0**-24)
        torch.mul(torch.cos(angle, out=wave), radius, out=result[part, :half])
        torch.mul(
            torch.sin(angle, out=wave)[:, : count - half], radius[:, : count - half], out=result[part, half:]
        )
    return result.view(len(seeds), *shape)


def derive(seeds: Tensor, stream: int) -> Tensor:
    """Derives new seeds, int64 ``[N]``, from ``seeds``; independent for each ``stream`` (a restart or a purpose)."""
    return _mix(seeds + _wrap((stream + 1) * _GOLDEN))
