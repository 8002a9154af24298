"""Starts and random moves of Square Attack, prepared for many queries at once (Andriushchenko et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from trilemma import noise
from trilemma.threat import image_norm

# Bumps per side of the start in L2.
TILES = 5
# Random numbers per move, besides one per channel.
DRAWS = 5
# With more channels, the patterns of signs are so many that moves hardly recur.
_COUNTED_CHANNELS = 4


@dataclass
class Candidates:
    """Changed images, one per row: the windows to write into the current images, in this order.

    Attributes:
        windows: pairs of addresses int64 ``[N, W]`` in the memory of one image, and the values there ``[N, W]``.
        keys: int64 ``[N]``, equal for equal candidates of one image; ``None`` if candidates do not recur.
    """

    windows: list[tuple[Tensor, Tensor]]
    keys: Tensor | None = None

    def write(self, images: Tensor, rows: Tensor) -> None:
        """Changes contiguous ``images`` ``[m, C, H, W]``, the current ones, to the candidates at ``rows`` ``[m]``."""
        flat = images.view(len(images), -1)
        for address, values in self.windows:
            flat.scatter_(1, address[rows], values[rows])


class Moves(Protocol):
    """Q moves for each of ``n`` images, prepared at once; a move is a function of the current image.

    The constructors take images ``clean`` ``[n, C, H, W]``, contiguous, U(0, 1) ``draws`` ``[n, Q, DRAWS + C]``, the
    windows' side in pixels, and the radius.
    """

    # Number of different candidates of one image; None if they do not recur.
    kinds: int | None

    def candidates(self, current: Tensor, image: Tensor, step: Tensor) -> Candidates:
        """Move ``step`` of image ``image``, both int64 ``[N]``, for the images ``current``, ``[n, C, H, W]``."""


def _signs(draws: Tensor) -> Tensor:
    """+1 or -1 with equal probability, from U(0, 1) draws."""
    return (draws < 0.5).float() * 2 - 1


def corners(draws: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Upper left corners ``(row [...], column [...])`` of windows inside the image, from U(0, 1) draws ``[..., 2]``."""
    # The largest draw is 1 - 2^-24, so that its product with a count rounds to below the count.
    row, column = (draws[..., i] * (extent - side + 1) for i, extent in enumerate((height, width)))
    return row.long(), column.long()


class _Windows:
    """Square windows of contiguous images, addressed by indices in the memory of one image.

    Args:
        draws: U(0, 1) numbers for the corners, ``[n, Q, 2]``.
        side: side of the windows in pixels.
        images: ``[n, C, H, W]``.
    """

    def __init__(self, draws: Tensor, side: int, images: Tensor) -> None:
        channels, height, width = images.shape[1:]
        row, column = corners(draws, side, height, width)
        self.first = row * width + column
        self.positions = height * width
        numbers, channel = (
            torch.arange(side, device=images.device),
            torch.arange(channels, device=images.device),
        )
        inside = numbers[:, None] * width + numbers
        self.inside = (channel[:, None, None] * (height * width) + inside).flatten()

    def address(self, image: Tensor, step: Tensor) -> Tensor:
        """Addresses of window ``step`` of image ``image``, both ``[N]``: int64 ``[N, C side side]``."""
        return self.first[image, step][:, None] + self.inside


def _read(images: Tensor, image: Tensor, address: Tensor) -> Tensor:
    """The values of contiguous ``images`` ``[n, C, H, W]`` at ``address`` ``[N, W]`` in image ``image`` ``[N]``."""
    values: Tensor = images.view(-1).take(address + (image * images[0].numel())[:, None])
    return values


# --- L-inf ---------------------------------------------------------------------------------------------------


def stripes(clean: Tensor, seeds: Tensor, epsilon: float) -> Tensor:
    """Starts of the L-inf search, ``[n, C, H, W]``: each column of each channel shifted by the radius, up or down."""
    _, channels, _, width = clean.shape
    return (clean + epsilon * _signs(noise.uniform(seeds, 0, (channels, 1, width)))).clamp_(0.0, 1.0)


class Recolour:
    """L-inf moves (algorithm 2): each channel of one window is set to the clean values plus or minus the radius.

    If the drawn signs equal the current ones, other signs are drawn, so that every move changes the image.
    """

    def __init__(self, clean: Tensor, draws: Tensor, side: int, epsilon: float) -> None:
        channels = clean.shape[1]
        self.clean, self.epsilon, self.channels = clean, epsilon, channels
        self.windows = _Windows(draws[..., :2], side, clean)
        self.signs = _signs(draws[..., DRAWS:])
        # The second draw inverts the signs of a random non-empty set of channels, so that it differs from the first.
        self.other_signs = self.signs * nonempty(draws[..., 2], channels)
        self.kinds: int | None = (
            self.windows.positions * 2**channels if channels <= _COUNTED_CHANNELS else None
        )
        self.weights = 2 ** torch.arange(min(channels, _COUNTED_CHANNELS), device=clean.device)

    def candidates(self, current: Tensor, image: Tensor, step: Tensor) -> Candidates:
        address = self.windows.address(image, step)
        clean = _read(self.clean, image, address)
        before, signs = _read(current, image, address), self.signs[image, step]
        after = self._recolour(clean, signs)
        same = (after == before).all(1)
        if bool(same.any()):
            signs = torch.where(same[:, None], self.other_signs[image, step], signs)
            after = self._recolour(clean, signs)
        keys = None
        if self.kinds is not None:
            keys = self.windows.first[image, step] * 2**self.channels + ((signs > 0) * self.weights).sum(1)
        return Candidates([(address, after)], keys)

    def _recolour(self, clean: Tensor, signs: Tensor) -> Tensor:
        """``clean``, ``[N, C side side]``, shifted by the radius in the direction of ``signs``, ``[N, C]``."""
        pixels: Tensor = clean.unflatten(1, (self.channels, -1))
        return pixels.add((self.epsilon * signs)[..., None]).clamp_(0.0, 1.0).flatten(1)


def nonempty(draws: Tensor, channels: int) -> Tensor:
    """-1 for the channels of a uniformly drawn non-empty set, else 1, ``[..., C]``, from U(0, 1) draws ``[...]``."""
    # A draw has 23 random bits.
    free = min(channels, 20)
    number = 1 + (draws * (2**free - 1)).long()
    member = (number[..., None] >> torch.arange(free, device=draws.device)) & 1
    return torch.nn.functional.pad(1.0 - 2.0 * member.float(), (0, channels - free), value=1.0)


# --- L2 ------------------------------------------------------------------------------------------------------


@cache
def bump(side: int) -> Tensor:
    """``eta`` of eq. (2): a positive and a negative peak side by side; ``[side, side]``, L2 norm 1, on the CPU."""

    def peak(width: int) -> Tensor:
        half = side // 2
        row, column = torch.arange(1, side + 1)[:, None], torch.arange(1, width + 1)
        distance = torch.maximum((row - half - 1).abs(), (column - width // 2 - 1).abs())
        # 1 / (d + 1)^2 at distance d from the peak, summed from d outwards.
        rings = 1.0 / torch.arange(1, half + 2).double().square()
        heights: Tensor = rings.flip(0).cumsum(0).flip(0)
        return heights[distance]

    eta = torch.cat([peak(side // 2), -peak(side - side // 2)], dim=1)
    return eta.div(eta.norm()).float()


def _randomly_transposed_bump(side: int, draws: Tensor) -> Tensor:
    """``eta`` or its transpose with equal probability, ``[..., 1, side, side]``, from U(0, 1) draws ``[...]``."""
    eta = bump(side).to(draws.device)
    return torch.where((draws < 0.5)[..., None, None], eta, eta.T).unsqueeze(-3)


def bumps(clean: Tensor, seeds: Tensor, epsilon: float) -> Tensor:
    """Starts of the L2 search, ``[n, C, H, W]``: a grid of 5 x 5 bumps of random sign, whose L2 norm is the radius."""
    channels, height, width = clean.shape[1:]
    side = max(min(height, width) // TILES, 1)
    down, across = min(height // side, TILES), min(width // side, TILES)
    tiles = _randomly_transposed_bump(side, noise.uniform(seeds, 0, (1,))[:, 0]).tile(1, 1, down, across)
    signs = _signs(noise.uniform(seeds, 1, (channels, down, across)))
    grid = tiles * signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta = torch.zeros_like(clean)
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return (clean + epsilon * delta / image_norm(delta)).clamp_(0.0, 1.0)


class Move:
    """L2 moves (algorithm 3): the perturbation of the second window moves into a bump in the first.

    The perturbation norm that clipping to the box has left unused is added to the bump as well.
    """

    kinds: int | None = None

    def __init__(self, clean: Tensor, draws: Tensor, side: int, epsilon: float) -> None:
        self.clean, self.epsilon, self.side, self.draws = clean, epsilon, side, draws
        self.windows = [_Windows(pair, side, clean) for pair in (draws[..., :2], draws[..., 2:4])]

    def candidates(self, current: Tensor, image: Tensor, step: Tensor) -> Candidates:
        addresses = [windows.address(image, step) for windows in self.windows]
        draws, shape = self.draws[image, step], (self.clean.shape[1], self.side, self.side)
        clean_first, clean_second = (
            _read(self.clean, image, address).unflatten(1, shape) for address in addresses
        )
        first, second = (
            _read(current, image, address).unflatten(1, shape) - clean
            for address, clean in zip(addresses, (clean_first, clean_second), strict=True)
        )
        bump = _randomly_transposed_bump(self.side, draws[:, 4]) * _signs(draws[:, DRAWS:])[..., None, None]
        mass = first.square().sum((2, 3), True)
        direction = bump + first / mass.sqrt().clamp_min(1e-12)
        length = direction.square().sum((2, 3), True).sqrt()
        # If the bump is the negative of the current perturbation, their sum is rounding only: take the bump alone.
        direction = torch.where(length > 1e-4, direction / length.clamp_min(1e-12), bump)
        only_second = _outside(draws, self.side, self.clean)
        mass = mass + (second * only_second).square().sum((2, 3), True)
        unused = (self.epsilon**2 - (current - self.clean).square().sum((1, 2, 3))).clamp_min(0.0)
        available = mass + (unused / shape[0])[image, None, None, None]
        moved = (clean_first + direction * available.sqrt()).clamp_(0.0, 1.0)
        # The first window is written last, so that it wins where the windows overlap.
        values = clean_second.flatten(1), moved.flatten(1)
        return Candidates(list(zip(reversed(addresses), values, strict=True)))


def _outside(draws: Tensor, side: int, images: Tensor) -> Tensor:
    """1 for the pixels of the second window that are outside the first, else 0, ``[N, 1, side, side]``."""
    first, second = (corners(pair, side, *images.shape[2:]) for pair in (draws[..., :2], draws[..., 2:4]))
    steps = torch.arange(side, device=images.device)
    offsets = [(b - a)[..., None] + steps for a, b in zip(first, second, strict=True)]
    in_rows, in_columns = ((offset >= 0) & (offset < side) for offset in offsets)
    return (~(in_rows[..., :, None] & in_columns[..., None, :])).float().unsqueeze(-3)
