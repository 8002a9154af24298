"""Exact lengths in pixel units: written as in the paper, kept as a fraction."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field


def parse_fraction(value: object) -> Fraction:
    """An exact number from ``"8/255"``, ``"0.3"``, ``0.3`` or ``2``; ``ValueError`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Fraction):
        raise ValueError(f"{value!r} is not a number such as 0.03 or '8/255'")
    try:
        return Fraction(str(value).replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a number such as 0.03 or '8/255'") from None


def _written_fraction(value: object) -> object:
    """Keeps a fraction the way it was written, once it is known to be one and positive."""
    if parse_fraction(value) <= 0:
        raise ValueError(f"{value!r} must be above 0")
    return str(value).replace(" ", "")


# Norms of a threat's ball.
Norm = Literal["linf", "l2"]

PixelLength = Annotated[
    str,
    BeforeValidator(_written_fraction),
    Field(description="a length in pixel units of images in [0, 1], exact: '8/255' or 0.3"),
]
