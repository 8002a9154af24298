"""Starts and random moves of Square Attack, prepared for many queries at once (Andriushchenko et al. 2020)."""

from __future__ import annotations

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


class Moves(Protocol):
    """One move per query: a change of ``current`` that is undone unless it lowers the margin.

    The constructors take images ``clean`` and ``current``, dense ``[n, C, H, W]`` with the same memory layout, U(0, 1)
    ``draws`` ``[Q, n, DRAWS + C]`` for Q queries, the windows' side in pixels, and the radius.
    """

    def apply(self, step: int) -> None:
        """Changes ``current`` in place, for the ``step``-th of the Q queries."""

    def accept(self, step: int, better: Tensor) -> None:
        """Keeps the change of images that are ``better``, bool ``[n]``, and undoes the others."""


def _signs(draws: Tensor) -> Tensor:
    """+1 or -1 with equal probability, from U(0, 1) draws."""
    return (draws < 0.5).float() * 2 - 1


def corners(draws: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Upper left corners ``(row [...], column [...])`` of windows inside the image, from U(0, 1) draws ``[..., 2]``."""
    # The largest draw is 1 - 2^-24, so that its product with a count rounds to below the count.
    row, column = (draws[..., i] * (extent - side + 1) for i, extent in enumerate((height, width)))
    return row.long(), column.long()


class _Windows:
    """One window ``[C, side, side]`` of each of ``n`` images for each of Q queries, addressed by flat memory indices.

    Args:
        draws: U(0, 1) numbers for the corners, ``[Q, n, 2]``.
        side: side of the windows in pixels.
        images: dense ``[n, C, H, W]``; all tensors that are read or written must have its memory layout.
    """

    def __init__(self, draws: Tensor, side: int, images: Tensor) -> None:
        count, channels, height, width = images.shape
        row, column = (edge[..., None, None, None] for edge in corners(draws, side, height, width))
        per_image, per_channel, per_row, per_column = images.stride()
        numbers = torch.arange(max(side, count, channels), device=images.device)
        image, channel, offset = (
            numbers[:count, None, None, None],
            numbers[:channels, None, None],
            numbers[:side],
        )
        row_address = image * per_image + (row + offset[:, None]) * per_row
        self.address = (row_address + (channel * per_channel + (column + offset) * per_column)).contiguous()

    def read_all(self, images: Tensor) -> Tensor:
        """The pixel values in the windows of all queries, ``[Q, n, C, side, side]``."""
        return _flat(images).index_select(0, self.address.view(-1)).view(self.address.shape)

    def read(self, step: int, images: Tensor) -> Tensor:
        """The pixel values in the windows of one query, ``[n, C, side, side]``."""
        address = self.address[step]
        return _flat(images).index_select(0, address.view(-1)).view(address.shape)

    def write(self, step: int, images: Tensor, values: Tensor) -> None:
        """Writes ``values`` ``[n, C, side, side]`` into the windows of one query, in place."""
        _flat(images).scatter_(0, self.address[step].view(-1), values.flatten())


def _flat(images: Tensor) -> Tensor:
    """A view of the memory of dense ``images`` as one dimension."""
    return images.as_strided((images.numel(),), (1,))


def _select(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` for the images where ``mask``, bool ``[n]``, is true, else ``other``; ``[n, ...]``."""
    return torch.where(mask[:, None, None, None], one, other)


# --- L-inf ---------------------------------------------------------------------------------------------------


def stripes(clean: Tensor, seeds: Tensor, epsilon: float) -> Tensor:
    """Starts of the L-inf search, ``[n, C, H, W]``: each column of each channel shifted by the radius, up or down."""
    _, channels, _, width = clean.shape
    return (clean + epsilon * _signs(noise.uniform(seeds, 0, (channels, 1, width)))).clamp_(0.0, 1.0)


class Recolour:
    """L-inf moves (algorithm 2): each channel of one window is set to the clean values plus or minus the radius.

    If the drawn signs equal the current ones, other signs are drawn, so that every move changes the image.
    """

    def __init__(self, clean: Tensor, current: Tensor, draws: Tensor, side: int, epsilon: float) -> None:
        self.current = current
        self.windows = _Windows(draws[..., :2], side, clean)
        signs, clean_windows = _signs(draws[..., DRAWS:])[..., None, None], self.windows.read_all(clean)
        self.drawn = (clean_windows + epsilon * signs).clamp_(0.0, 1.0)
        # The second draw inverts the signs of a random non-empty set of channels, so that it differs from the first.
        other_signs = signs * nonempty(draws[..., 2], clean.shape[1])[..., None, None]
        self.drawn_again = (clean_windows + epsilon * other_signs).clamp_(0.0, 1.0)

    def apply(self, step: int) -> None:
        self.before = self.windows.read(step, self.current)
        same = (self.drawn[step] == self.before).flatten(1).all(1)
        self.after = _select(same, self.drawn_again[step], self.drawn[step])
        self.windows.write(step, self.current, self.after)

    def accept(self, step: int, better: Tensor) -> None:
        self.windows.write(step, self.current, _select(better, self.after, self.before))


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

    def __init__(self, clean: Tensor, current: Tensor, draws: Tensor, side: int, epsilon: float) -> None:
        self.current = current
        self.unused = epsilon**2 - (current - clean).square().sum((1, 2, 3))
        self.windows = [_Windows(pair, side, clean) for pair in (draws[..., :2], draws[..., 2:4])]
        self.clean = [windows.read_all(clean) for windows in self.windows]
        self.only_second = _outside(draws, side, clean)
        bump = _randomly_transposed_bump(side, draws[..., 4])
        self.bump = bump * _signs(draws[..., DRAWS:])[..., None, None]

    def apply(self, step: int) -> None:
        self.before = [windows.read(step, self.current) for windows in self.windows]
        first, second = (values - clean[step] for values, clean in zip(self.before, self.clean, strict=True))
        mass = first.square().sum((2, 3), True)
        direction = self.bump[step] + first / mass.sqrt().clamp_min(1e-12)
        length = direction.square().sum((2, 3), True).sqrt()
        # If the bump is the negative of the current perturbation, their sum is rounding only: take the bump alone.
        direction = torch.where(length > 1e-4, direction / length.clamp_min(1e-12), self.bump[step])
        mass = mass + (second * self.only_second[step]).square().sum((2, 3), True)
        unused = self.unused.clamp_min(0.0)[:, None, None, None] / mass.shape[1]
        clean_first = self.clean[0][step]
        moved = (clean_first + direction * (mass + unused).sqrt()).clamp_(0.0, 1.0)
        self.after = [moved, self.clean[1][step]]
        self.freed = mass.sum((1, 2, 3)) - (moved - clean_first).square().sum((1, 2, 3))
        self._write(step, self.after)

    def accept(self, step: int, better: Tensor) -> None:
        pairs = zip(self.after, self.before, strict=True)
        self._write(step, [_select(better, after, before) for after, before in pairs])
        self.unused = self.unused + self.freed * better

    def _write(self, step: int, values: list[Tensor]) -> None:
        # The first window is written last, so that it wins where the windows overlap.
        for windows, value in reversed(list(zip(self.windows, values, strict=True))):
            windows.write(step, self.current, value)


def _outside(draws: Tensor, side: int, images: Tensor) -> Tensor:
    """1 for the pixels of the second window that are outside the first, else 0, ``[Q, n, 1, side, side]``."""
    first, second = (corners(pair, side, *images.shape[2:]) for pair in (draws[..., :2], draws[..., 2:4]))
    steps = torch.arange(side, device=images.device)
    offsets = [(b - a)[..., None] + steps for a, b in zip(first, second, strict=True)]
    in_rows, in_columns = ((offset >= 0) & (offset < side) for offset in offsets)
    return (~(in_rows[..., :, None] & in_columns[..., None, :])).float().unsqueeze(-3)
