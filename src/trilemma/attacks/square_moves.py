"""The random changes of Square Attack, made ready for many queries at once (Andriushchenko et al. 2020)."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from trilemma import noise
from trilemma.threat import image_norm

TILES = 5  # per side, of the start in L2
DRAWS = 5  # numbers that a change takes beside one per channel


class Moves(Protocol):
    """A change per query to images that every query leaves as it found them, or better.

    Its classes are made from images ``clean`` and ``current``, dense ``[n, C, H, W]`` of one memory layout, U(0, 1)
    ``draws`` ``[Q, n, DRAWS + C]``, the windows' side, and the radius.
    """

    def make(self, step: int) -> None:
        """Changes ``current`` for the ``step``-th of the Q queries."""

    def settle(self, step: int, better: Tensor) -> None:
        """Takes the change back where it was not ``better``, bool ``[n]``."""


def _signs(draws: Tensor) -> Tensor:
    return (draws < 0.5).float() * 2 - 1


def corners(draws: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Upper left ``(row [...], column [...])`` of windows inside the image, from U(0, 1) draws ``[..., 2]``."""
    # the largest draw is 1 - 2^-24, whose product with a count rounds to below the count
    row, column = (draws[..., i] * (extent - side + 1) for i, extent in enumerate((height, width)))
    return row.long(), column.long()


class _Windows:
    """A square ``[C, side, side]`` of each image for each of Q queries, by flat addresses in memory.

    Args:
        draws: of the corners, ``[Q, n, 2]``.
        images: dense ``[n, C, H, W]``; every tensor read or written has its memory layout.
    """

    def __init__(self, draws: Tensor, side: int, images: Tensor) -> None:
        count, channels, height, width = images.shape
        row, column = (edge[..., None, None, None] for edge in corners(draws, side, height, width))
        per_image, per_channel, per_row, per_column = images.stride()
        reach = torch.arange(max(side, count, channels), device=images.device)
        points, colours, steps = reach[:count, None, None, None], reach[:channels, None, None], reach[:side]
        rows = points * per_image + (row + steps[:, None]) * per_row
        self.address = (rows + (colours * per_channel + (column + steps) * per_column)).contiguous()

    def read_all(self, images: Tensor) -> Tensor:
        """``[Q, n, C, side, side]``."""
        return _flat(images).index_select(0, self.address.view(-1)).view(self.address.shape)

    def read(self, step: int, images: Tensor) -> Tensor:
        """``[n, C, side, side]``."""
        address = self.address[step]
        return _flat(images).index_select(0, address.view(-1)).view(address.shape)

    def write(self, step: int, images: Tensor, values: Tensor) -> None:
        _flat(images).scatter_(0, self.address[step].view(-1), values.flatten())


def _flat(images: Tensor) -> Tensor:
    return images.as_strided((images.numel(),), (1,))


def _select(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows[:, None, None, None], one, other)


# --- L-inf ---------------------------------------------------------------------------------------------------


def stripes(clean: Tensor, seeds: Tensor, epsilon: float) -> Tensor:
    """Where the search in L-inf starts: each column of each channel up or down by the whole radius."""
    _, channels, _, width = clean.shape
    return (clean + epsilon * _signs(noise.uniform(seeds, 0, (channels, 1, width)))).clamp_(0.0, 1.0)


class Recolour:
    """Algorithm 2: one window, all of it up or down by the whole radius in each channel, and not as it was."""

    def __init__(self, clean: Tensor, current: Tensor, draws: Tensor, side: int, epsilon: float) -> None:
        self.current = current
        self.windows = _Windows(draws[..., :2], side, clean)
        signs, there = _signs(draws[..., DRAWS:])[..., None, None], self.windows.read_all(clean)
        self.drawn = (there + epsilon * signs).clamp_(0.0, 1.0)
        # What is there already is drawn again among the other sign patterns: a non-empty set of channels turns over.
        turned = signs * nonempty(draws[..., 2], clean.shape[1])[..., None, None]
        self.drawn_again = (there + epsilon * turned).clamp_(0.0, 1.0)

    def make(self, step: int) -> None:
        self.before = self.windows.read(step, self.current)
        same = (self.drawn[step] == self.before).flatten(1).all(1)
        self.after = _select(same, self.drawn_again[step], self.drawn[step])
        self.windows.write(step, self.current, self.after)

    def settle(self, step: int, better: Tensor) -> None:
        self.windows.write(step, self.current, _select(better, self.after, self.before))


def nonempty(draws: Tensor, channels: int) -> Tensor:
    """-1 for the members of a uniform non-empty set of channels, else 1, ``[..., C]``; from U(0, 1) draws ``[...]``."""
    free = min(channels, 20)  # a draw has 23 bits
    number = 1 + (draws * (2**free - 1)).long()
    member = (number[..., None] >> torch.arange(free, device=draws.device)) & 1
    return torch.nn.functional.pad(1.0 - 2.0 * member, (0, channels - free), value=1.0)


# --- L2 ------------------------------------------------------------------------------------------------------


@cache
def bump(side: int) -> Tensor:
    """Eq. (2), ``eta``: a hill and, beside it, a hollow, ``[side, side]`` of L2 norm 1, float32 on the CPU."""

    def hill(width: int) -> Tensor:
        half = side // 2
        rows, columns = torch.arange(1, side + 1)[:, None], torch.arange(1, width + 1)
        distance = torch.maximum((rows - half - 1).abs(), (columns - width // 2 - 1).abs())
        rings = 1.0 / torch.arange(1, half + 2).double().square()  # 1 / (d + 1)^2
        heights: Tensor = rings.flip(0).cumsum(0).flip(0)  # summed from d outwards
        return heights[distance]

    eta = torch.cat([hill(side // 2), -hill(side - side // 2)], dim=1)
    return eta.div(eta.norm()).float()


def _turned(side: int, draws: Tensor) -> Tensor:
    """``eta`` or its transpose, ``[..., 1, side, side]``, from U(0, 1) draws ``[...]``."""
    eta = bump(side).to(draws.device)
    return torch.where((draws < 0.5)[..., None, None], eta, eta.T).unsqueeze(-3)


def bumps(clean: Tensor, seeds: Tensor, epsilon: float) -> Tensor:
    """Where the search in L2 starts: a grid of five by five bumps of random sign, as long as the radius together."""
    channels, height, width = clean.shape[1:]
    side = max(min(height, width) // TILES, 1)
    down, across = min(height // side, TILES), min(width // side, TILES)
    tiles = _turned(side, noise.uniform(seeds, 0, (1,))[:, 0]).tile(1, 1, down, across)
    signs = _signs(noise.uniform(seeds, 1, (channels, down, across)))
    grid = tiles * signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta = torch.zeros_like(clean)
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return (clean + epsilon * delta / image_norm(delta)).clamp_(0.0, 1.0)


class Move:
    """Algorithm 3: the perturbation in the second window, and what the box cut off, go into a bump in the first."""

    def __init__(self, clean: Tensor, current: Tensor, draws: Tensor, side: int, epsilon: float) -> None:
        self.current = current
        self.unused = epsilon**2 - (current - clean).square().sum((1, 2, 3))
        self.windows = [_Windows(pair, side, clean) for pair in (draws[..., :2], draws[..., 2:4])]
        self.clean = [windows.read_all(clean) for windows in self.windows]
        self.alone = _outside(draws, side, clean)
        self.bump = _turned(side, draws[..., 4]) * _signs(draws[..., DRAWS:])[..., None, None]

    def make(self, step: int) -> None:
        self.before = [windows.read(step, self.current) for windows in self.windows]
        first, second = (now - clean[step] for now, clean in zip(self.before, self.clean, strict=True))
        mass = first.square().sum((2, 3), True)
        direction = self.bump[step] + first / mass.sqrt().clamp_min(1e-12)
        length = direction.square().sum((2, 3), True).sqrt()
        # The bump may be just the reverse of what is there: their sum is then only rounding.
        direction = torch.where(length > 1e-4, direction / length.clamp_min(1e-12), self.bump[step])
        mass = mass + (second * self.alone[step]).square().sum((2, 3), True)
        unused = self.unused.clamp_min(0.0)[:, None, None, None] / mass.shape[1]
        there = self.clean[0][step]
        moved = (there + direction * (mass + unused).sqrt()).clamp_(0.0, 1.0)
        self.after = [moved, self.clean[1][step]]
        self.freed = mass.sum((1, 2, 3)) - (moved - there).square().sum((1, 2, 3))
        self._write(step, self.after)

    def settle(self, step: int, better: Tensor) -> None:
        pairs = zip(self.after, self.before, strict=True)
        self._write(step, [_select(better, after, before) for after, before in pairs])
        self.unused = self.unused + self.freed * better

    def _write(self, step: int, values: list[Tensor]) -> None:
        for windows, value in reversed(
            list(zip(self.windows, values, strict=True))
        ):  # the first wins where they meet
            windows.write(step, self.current, value)


def _outside(draws: Tensor, side: int, images: Tensor) -> Tensor:
    """1 for the pixels of the second window that are not in the first, else 0, ``[Q, n, 1, side, side]``."""
    one, two = (corners(pair, side, *images.shape[2:]) for pair in (draws[..., :2], draws[..., 2:4]))
    steps = torch.arange(side, device=images.device)
    offsets = [(there - here)[..., None] + steps for here, there in zip(one, two, strict=True)]
    in_rows, in_columns = ((offset >= 0) & (offset < side) for offset in offsets)
    return (~(in_rows[..., :, None] & in_columns[..., None, :])).float().unsqueeze(-3)
