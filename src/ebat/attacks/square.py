"""Square Attack: a random search over square windows, from scores alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from math import sqrt

import torch
from torch import Tensor

from ebat import noise
from ebat.attacks.ball import check_labels
from ebat.attacks.margins import is_wrong, margin
from ebat.attacks.oracle import Oracle
from ebat.classifier import Classifier
from ebat.contexts import inner_loop
from ebat.errors import ConfigError
from ebat.threat import Threat, image_norm

FIRST_SHARE = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000)
TILES = 5  # per side, of the start in L2
CHUNK = 50  # queries whose random numbers are drawn in one go


def square(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    queries: int = 5000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The image that fooled the classifier, or else the one of lowest margin ``z_y - max_{i != y} z_i``.

    Arxiv 1912.00049. A square window of the perturbation is redrawn per query and kept where the margin falls
    (L-inf: all of it at plus or minus the radius; L2: mass moves from one window to another). The windows' share
    of the image, 0.8 at first, is halved after queries 10, 50, 200, 500, 1000, 2000 and 4000 whatever ``queries``
    is. No gradient is asked for. Each image has its own random numbers, so the result does not depend on the batch.

    Args:
        clf: the classifier; left exactly as it was.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        queries: forward passes per image at most, the start's included; an image stops when it is broken.
        generator: source of the windows and signs.

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1]; wrongly classified ones as they came.

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: queries below 1.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    if queries < 1:
        raise ConfigError(f"square: queries={queries}; ask at least 1 per image")
    seeds = noise.image_seeds(len(images), generator, images.device)
    final = images.detach().clone()
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf)
        living = (~is_wrong(oracle.logits(images), labels)).nonzero().squeeze(1)
        if len(living):
            final[living] = search(
                oracle, images[living], labels[living], threat, seeds[living], queries=queries
            )
    return final


@dataclass
class _Points:
    """The images that still stand; every tensor has one row per image."""

    index: Tensor
    clean: Tensor
    labels: Tensor
    seeds: Tensor
    current: Tensor
    margins: Tensor

    def keep(self, rows: Tensor) -> None:
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name)[rows])


@torch.no_grad()
def search(
    oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor, *, queries: int
) -> Tensor:
    """:func:`square` for images that are classified correctly, inside :func:`ebat.contexts.inner_loop`."""
    start, propose = (_stripes, _recolour) if threat.norm == "linf" else (_bumps, _move)
    height, width = images.shape[2:]
    draws_per_query = 5 + images.shape[1]
    clean = images.detach().clone()
    candidate = torch.empty_like(clean).copy_(start(clean, noise.derive(seeds, 0), threat.epsilon))
    margins = torch.full((len(images),), torch.inf, device=images.device)
    index = torch.arange(len(images), device=images.device)
    points = _Points(index, clean, labels, seeds, candidate, margins)
    final = clean.clone()
    for query in range(queries):
        if query > 0:
            place = (query - 1) % CHUNK
            if place == 0:
                draws = noise.uniform(points.seeds, query, (CHUNK, draws_per_query))
            side = window_side(query, height, width, at_least=1 if threat.norm == "linf" else 3)
            candidate = propose(points.current, points.clean, draws[:, place], side, threat.epsilon)
        logits = oracle.logits(candidate)
        margins, broken = -margin(logits, points.labels), is_wrong(logits, points.labels)
        better = ((margins < points.margins) | broken).nonzero().squeeze(1)
        points.current[better], points.margins[better] = candidate[better], margins[better]
        if bool(broken.any()):
            final[points.index[broken]] = points.current[broken]
            rows = (~broken).nonzero().squeeze(1)
            points.keep(rows)
            draws = draws[rows] if query > 0 else torch.empty(0)
            if not len(rows):
                break
    final[points.index] = points.current
    return threat.project(final, images)


def window_side(query: int, height: int, width: int, at_least: int) -> int:
    """Side of the windows of the ``query``-th change (from 1), pixels; it always has room to move."""
    share = FIRST_SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    room = min(height, width)
    return min(max(min(round(sqrt(share * height * width)), room - 1), at_least), room)


def _signs(draws: Tensor) -> Tensor:
    return (draws < 0.5).float() * 2 - 1


def _corner(draws: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Upper left corners ``(row [n], column [n])`` of windows inside the image, from U(0, 1) draws ``[n, 2]``."""
    # the largest draw is 1 - 2^-24, whose product with a count rounds to below the count
    row, column = (draws[:, i] * (extent - side + 1) for i, extent in enumerate((height, width)))
    return row.long(), column.long()


class _Window:
    """A square ``[C, side, side]`` of each image, to read and to write; flat addresses are ten times as fast as four.

    Args:
        corner: upper left ``(row [n], column [n])``.
        images: dense ``[n, C, H, W]``; every tensor read or written has its memory layout.
    """

    def __init__(self, corner: tuple[Tensor, Tensor], side: int, images: Tensor) -> None:
        row, column = (edge[:, None, None, None] for edge in corner)
        count, channels = images.shape[:2]
        per_image, per_channel, per_row, per_column = images.stride()
        reach = torch.arange(max(side, count, channels), device=images.device)
        points, colours, steps = reach[:count, None, None, None], reach[:channels, None, None], reach[:side]
        rows = points * per_image + (row + steps[:, None]) * per_row
        address = rows + (colours * per_channel + (column + steps) * per_column)
        self.shape, self.address = address.shape, address.flatten()

    def read(self, images: Tensor) -> Tensor:
        return _flat(images).index_select(0, self.address).view(self.shape)

    def write(self, images: Tensor, values: Tensor) -> None:
        _flat(images).scatter_(0, self.address, values.flatten())

    def clear(self, images: Tensor) -> None:
        _flat(images).index_fill_(0, self.address, 0.0)


def _flat(images: Tensor) -> Tensor:
    return images.as_strided((images.numel(),), (1,))


def _stripes(clean: Tensor, seeds: Tensor, epsilon: float) -> Tensor:
    """Where the search in L-inf starts: each column of each channel up or down by the whole radius."""
    _, channels, _, width = clean.shape
    return (clean + epsilon * _signs(noise.uniform(seeds, 0, (channels, 1, width)))).clamp_(0.0, 1.0)


def _recolour(current: Tensor, clean: Tensor, draws: Tensor, side: int, epsilon: float) -> Tensor:
    """Algorithm 2: one window, all of it up or down by the whole radius in each channel, and not as it was."""
    channels, height, width = current.shape[1:]
    window = _Window(_corner(draws[:, :2], side, height, width), side, current)
    there, signs = window.read(clean), _signs(draws[:, 5:])[:, :, None, None]
    colour = (there + epsilon * signs).clamp_(0.0, 1.0)
    same = (colour == window.read(current)).flatten(1).all(1)
    # What was there already is drawn again among the other sign patterns: a non-empty set of channels turns over.
    turn = torch.where(same[:, None], _nonempty(draws[:, 2], channels), 1.0)[:, :, None, None]
    candidate = current.clone()
    window.write(candidate, torch.where(turn < 0, (there - epsilon * signs).clamp_(0.0, 1.0), colour))
    return candidate


def _nonempty(draws: Tensor, channels: int) -> Tensor:
    """-1 for the members of a uniform non-empty set of channels, else 1, ``[n, C]``; from U(0, 1) draws ``[n]``."""
    free = min(channels, 20)  # a draw has 23 bits
    number = 1 + (draws * (2**free - 1)).long()
    member = (number[:, None] >> torch.arange(free, device=draws.device)) & 1
    return torch.nn.functional.pad(1.0 - 2.0 * member, (0, channels - free), value=1.0)


@cache
def _bump(side: int) -> Tensor:
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
    """``eta`` or its transpose per image, ``[n, 1, side, side]``, from U(0, 1) draws ``[n]``."""
    eta = _bump(side).to(draws.device)
    return torch.where((draws < 0.5)[:, None, None], eta, eta.T)[:, None]


def _bumps(clean: Tensor, seeds: Tensor, epsilon: float) -> Tensor:
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


def _move(current: Tensor, clean: Tensor, draws: Tensor, side: int, epsilon: float) -> Tensor:
    """Algorithm 3: the second window's perturbation, and what the box cut off, go into a bump in the first."""
    channels, height, width = current.shape[1:]
    corners = [_corner(pair, side, height, width) for pair in (draws[:, :2], draws[:, 2:4])]
    first, second = (_Window(corner, side, current) for corner in corners)
    delta = current - clean
    unused = (epsilon**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min_(0.0)
    bump = _turned(side, draws[:, 4]) * _signs(draws[:, 5:])[:, :, None, None]
    had = first.read(delta)
    direction = bump + had / _length(had).clamp_min(1e-12)
    length = _length(direction)
    # The bump may be just the reverse of what is there: their sum is then only rounding.
    direction = torch.where(length > 1e-4, direction / length.clamp_min(1e-12), bump)
    first.clear(delta)  # before the second is read: what they share counts once
    available = had.square().sum((2, 3), True) + second.read(delta).square().sum((2, 3), True)
    second.clear(delta)
    first.write(delta, direction * (available + unused / channels).sqrt())
    return delta.add_(clean).clamp_(0.0, 1.0)


def _length(window: Tensor) -> Tensor:
    """L2 norm of each channel, ``[n, C, 1, 1]``."""
    return window.square().sum((2, 3), keepdim=True).sqrt()
