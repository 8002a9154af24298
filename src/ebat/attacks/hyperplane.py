"""Nearest points of a hyperplane inside the box [0, 1] (Croce and Hein 2020, arXiv 1907.02044, section 2.2).

Towards the hyperplane every pixel moves against the sign of its weight, and stops at the box. Pixel d, with room c_d
left in its direction, has moved ``min(s a_d, c_d)`` when the common multiplier is s; the rate a_d is 1 for L-inf and
``|w_d|`` for L2 (the condition of optimality). The nearest point is therefore one root of a scalar function,

    ``sum_d |w_d| min(s a_d, c_d) = |<w, x> + b|``,

whose left side is concave and piecewise linear in s. Newton's method climbs such a function from the left without
passing the root, and is exact once no further pixel reaches the box: after a handful of steps, and without a sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebat.threat import NORMS


def project_linf(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The point of ``{z in [0, 1]^D : <w, z> + b = 0}`` nearest to each point in L-inf.

    Where the hyperplane misses the box: the point of the box nearest to it, the corner that w points at (pixels of
    weight 0 stay). Of several nearest points it is the one whose pixels all move as far as they may.

    Args:
        points: ``[..., D]`` in [0, 1].
        w, b: ``[..., D]`` and ``[...]``; leading dimensions broadcast against those of ``points``.
    """
    return points + displacement(points, w, (w * points).sum(-1) + b, "linf")


def project_l2(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As :func:`project_linf`, nearest in L2; the nearest point is unique."""
    return points + displacement(points, w, (w * points).sum(-1) + b, "l2")


def displacement(points: Tensor, w: Tensor, value: Tensor, norm: str) -> Tensor:
    """From each point to its projection, ``[..., D]``.

    Args:
        points: ``[..., D]`` in [0, 1].
        w: ``[..., D]``, the normals.
        value: ``[...]``, ``<w, x> + b`` at each point.
        norm: ``"linf"`` or ``"l2"``.
    """
    assert norm in NORMS
    direction = w * -value.sign()[..., None]
    room = torch.where(direction > 0, 1 - points, points).clamp_min(0.0)
    size = w.abs()
    rates = size if norm == "l2" else torch.ones_like(value)[..., None]
    multiplier = _root(size, rates, room.expand_as(direction), value.abs())
    return torch.minimum(multiplier[..., None] * rates, room) * direction.sign()


def _root(size: Tensor, rates: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """The least ``s`` with ``sum_d size_d min(s rates_d, room_d) = wanted``, ``[...]``; the largest float if none."""
    most = torch.finfo(wanted.dtype).max
    pull, limit = size * rates, size * room
    slope, stopped = pull.sum(-1), torch.zeros_like(wanted)
    moving = size.new_full(wanted.shape, size.shape[-1])
    root = torch.zeros_like(wanted)
    while True:
        # the tangent's root: pixels that still move count by their slope, the others by all they could give
        root = torch.where(slope > 0, (wanted - stopped) / slope, most).maximum(root)
        free = root[..., None] * rates < room
        fewer = free.sum(-1)
        if not bool((fewer < moving).any()):
            return root
        moving = fewer
        slope = torch.where(free, pull, 0.0).sum(-1)
        stopped = torch.where(free, 0.0, limit).sum(-1)
