"""Exact lengths in pixel units, written as in papers (``8/255``) and parsed as fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field


def parse_fraction(value: object) -> Fraction:
    """Parses ``"8/255"``, ``"0.3"``, ``0.3`` or ``2`` as an exact number.

    Raises:
        ValueError: ``value`` is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Fraction):
        raise ValueError(f"{value!r} is not a number such as 0.03 or '8/255'")
    try:
        return Fraction(str(value).replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a number such as 0.03 or '8/255'") from None


def _written_fraction(value: object) -> object:
    """Checks that ``value`` is a positive number, and returns it as text in the form in which it was written."""
    if parse_fraction(value) <= 0:
        raise ValueError(f"{value!r} must be above 0")
    return str(value).replace(" ", "")


# The norms of a threat model.
Norm = Literal["linf", "l2"]

PixelLength = Annotated[
    str,
    BeforeValidator(_written_fraction),
    Field(description="a length in pixel units of images in [0, 1], exact: '8/255' or 0.3"),
]
