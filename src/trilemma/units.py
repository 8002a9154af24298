"""Exact lengths in pixel units (``8/255``), parsed as fractions; durations and sizes in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from trilemma.errors import ConfigError, nearest
from trilemma.limits import CLASSES

# A decimal number without leading zeros or underscores, which Python and YAML 1.1 read in several ways.
DECIMAL = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
# Characters of a number.
_LONGEST = 100
# Of the normal numbers of float32.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127
_RATIO = re.compile(r"[-+]?(?:0|[1-9][0-9]*)/[1-9][0-9]*")


def parse_fraction(value: object) -> Fraction:
    """Parses ``"8/255"``, ``"0.3"``, ``0.3`` or ``2`` as an exact number.

    Raises:
        ValueError: ``value`` is not a number, or one that float32, in which images are computed, does not hold.
    """
    # Real includes the numbers of NumPy; a bool of Python is an int.
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise ValueError(f"{value!r} is not a number such as 0.03 or '8/255'")
    # Python writes no integer of more than 4300 digits.
    endless = isinstance(value, int) and value.bit_length() > 4 * _LONGEST
    text = "" if endless else str(value).replace(" ", "")
    if endless or len(text) > _LONGEST:
        raise ValueError(f"a value of more than {_LONGEST} digits is not a number such as 0.03 or '8/255'")
    if not (DECIMAL.fullmatch(text) or _RATIO.fullmatch(text)):
        raise ValueError(f"{value!r} is not a number such as 0.03 or '8/255'")
    mantissa, _, exponent = text.lower().partition("e")
    if not any(digit in mantissa for digit in "123456789"):
        return Fraction(0)
    # As a float first: the numerator of 1e99999999 has 100 million digits.
    if exponent and not _SMALLEST <= abs(float(text)) <= _LARGEST:
        raise ValueError(
            f"{value!r} is too {'small' if abs(float(text)) < 1 else 'large'}: float32 does not hold it"
        )
    fraction = Fraction(text)
    if fraction and not _SMALLEST <= abs(fraction) <= _LARGEST:
        raise ValueError(
            f"{value!r} is too {'small' if abs(fraction) < 1 else 'large'}: float32 does not hold it"
        )
    return fraction


# Half the spacing of float32 below 1: a smaller change of a pixel value above 1/2 is rounded to none.
SMALLEST_RADIUS = Fraction(1, 2**25)


def check_size(value: float) -> None:
    """Checks that a number is 0 or one that float32 holds, and a whole number within 2^53.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, int) and abs(value) > MAX_SEED:
        raise ValueError(f"must be less than or equal to {MAX_SEED:,} in magnitude")
    # NaN is refused with infinity, by the type of the field.
    if value != 0 and (abs(value) < _SMALLEST or _LARGEST < abs(value) < math.inf):
        raise ValueError(f"is too {'small' if abs(value) < 1 else 'large'}: float32 does not hold it")


def check_radius(norm: str, radius: object) -> None:
    """Checks that a radius is a number above 0 that changes images and, for ``"linf"``, within their range [0, 1].

    Raises:
        ValueError: the radius is not.
    """
    fraction = parse_fraction(radius)
    if fraction <= 0:
        raise ValueError(f"{radius!r} must be above 0")
    if fraction < SMALLEST_RADIUS:
        raise ValueError(
            f"{radius!r} is below the spacing of float32 pixel values, so that the result would be the clean one"
        )
    if norm == "linf" and fraction > 1:
        raise ValueError(f"{radius!r} is more than the whole range [0, 1]; write '{radius}/255'?")


def _written_fraction(value: object) -> object:
    """Checks that ``value`` is a positive number, and returns it as text in the form in which it was written."""
    if parse_fraction(value) <= 0:
        raise ValueError(f"{value!r} must be above 0")
    return str(value).replace(" ", "")


# The norms of a threat model.
NormName = Literal["linf", "l2"]
NORMS: tuple[str, ...] = get_args(NormName)
# Further spellings, without case, spaces, "_" and "-".
_SPELLINGS = {"linf": "linf", "inf": "linf", "linfinity": "linf", "infinity": "linf", "l2": "l2", "2": "l2"}

_WITHOUT_SEPARATORS = str.maketrans("", "", " _-")


def parse_norm(value: object) -> str:
    """Parses a norm: ``"linf"``, ``"Linf"``, ``"l_inf"``, ``"inf"``, ``math.inf``, ``"l2"``, ``"L2"`` or ``2``.

    Returns:
        ``"linf"`` or ``"l2"``.

    Raises:
        ValueError: any other value.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        if value == math.inf or value == 2:
            return "linf" if value == math.inf else "l2"
    elif isinstance(value, str):
        norm = _SPELLINGS.get(value.lower().translate(_WITHOUT_SEPARATORS))
        if norm is not None:
            return norm
    raise ValueError(f"{value!r} is unknown; choose one of {', '.join(NORMS)}")


Norm = Annotated[NormName, BeforeValidator(parse_norm)]

PixelLength = Annotated[
    str,
    BeforeValidator(_written_fraction),
    Field(description="a length in pixel units of images in [0, 1], exact: '8/255' or 0.3"),
]


# Largest count of anything; it is far beyond every use, and keeps sizes within 64 bits.
MOST = 10**9
MOST_CLASSES = CLASSES.most
# Side of an image in pixels.
MOST_PIXELS = 8192
# Sums and products of a seed with small numbers must fit into 64 bits.
MAX_SEED = 2**53


def count(where: str, name: str, value: Any, at_least: int = 1, at_most: int = MOST) -> int:
    """Returns a whole number, such as ``steps``, as ``int``; whole numbers of NumPy are accepted.

    Args:
        where: the function that ``value`` was passed to, for the message.
        name: name of the argument.
        value: the argument.
        at_least, at_most: its lowest and its highest value.

    Raises:
        ConfigError: not a whole number, or out of range.
    """
    whole = whole_number(where, name, value)
    if whole < at_least:
        raise ConfigError(f"{where}: {name}={_shown(whole)}; must be at least {at_least}")
    if whole > at_most:
        raise ConfigError(f"{where}: {name}={_shown(whole)}; must be at most {at_most:,}")
    return whole


def whole_number(where: str, name: str, value: Any) -> int:
    """Returns any whole number as ``int``; arguments as in :func:`count`.

    Raises:
        ConfigError: not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{where}: {name}={value!r}; must be a whole number")
    return int(value)


def _shown(value: int) -> str:
    # Python writes no integer of more than 4300 digits.
    return str(value) if value.bit_length() < 4 * _LONGEST else f"a number of {value.bit_length()} bits"


def seed_number(where: str, value: Any) -> int:
    """Returns a seed as ``int``; arguments as in :func:`count`.

    Raises:
        ConfigError: not a whole number from 0 to :data:`MAX_SEED`.
    """
    return count(where, "seed", value, 0, MAX_SEED)


def length(where: str, name: str, value: Any, *, zero: bool = False) -> float:
    """Returns a length in pixel units, such as ``step_size="2/255"``, as ``float``.

    Args:
        where, name, value: as in :func:`count`.
        zero: whether 0 is allowed.

    Raises:
        ConfigError: not a number, or not above 0 (below 0 if ``zero``).
    """
    try:
        result = float(parse_fraction(value))
    except ValueError as error:
        raise ConfigError(f"{where}: {name}: {error}") from None
    if result < 0 or (result == 0 and not zero):
        raise ConfigError(f"{where}: {name}={value!r}; must be {'at least' if zero else 'above'} 0")
    return result


def number(where: str, name: str, value: Any) -> float:
    """Returns any number that float32 holds, such as a weight, as ``float``; arguments as in :func:`count`.

    Raises:
        ConfigError: not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{where}: {name}={value!r}; must be a finite number")
    # The comparison is false for NaN, and exact for an integer of any length.
    if not -_LARGEST <= value <= _LARGEST:  # type: ignore[operator]
        shown = _shown(value) if isinstance(value, int) else repr(value)
        raise ConfigError(f"{where}: {name}={shown}; must be a finite number of float32")
    return float(value)


_DURATIONS = ((365.25 * 86400, "year"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def duration(seconds: float) -> str:
    """A duration in words with two digits: ``"2 years"``, ``"1.5 hours"``, ``"45 seconds"``, ``"0.12 seconds"``."""
    # Fewer than two of a unit are more readable in the next smaller one: 90 seconds, 36 hours.
    size, unit = next(((size, unit) for size, unit in _DURATIONS if seconds >= 2 * size), _DURATIONS[-1])
    text = _two_digits(seconds / size)
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"


def byte_size(size: float) -> str:
    """A number of bytes in words with two digits: ``"4.2 GB"``, ``"310 MB"``."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= limit:
            return f"{_two_digits(size / limit)} {unit}"
    return f"{_two_digits(size / 1e3)} kB"


def _two_digits(value: float) -> str:
    return f"{round(value):,}" if value >= 9.95 else f"{value:.2g}"


def choice(where: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Checks that a value is one of ``choices``; arguments as in :func:`count`.

    Raises:
        ConfigError: it is not; the message has all choices and the nearest one.
    """
    if not isinstance(value, str) or value not in choices:
        similar = nearest(str(value), choices)
        raise ConfigError(
            f"{where}: {name}={value!r} is unknown; choose one of {', '.join(choices)}.{similar}"
        )
