"""Durations and sizes in words, and the bounds of numbers."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
import torch

from trilemma.errors import ConfigError
from trilemma.printing import quoted
from trilemma.units import (
    SMALLEST_RADIUS,
    byte_size,
    check_radius,
    count,
    duration,
    number,
    parse_fraction,
    seed_number,
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 seconds"), (0.0123, "0.012 seconds"), (1, "1 second"), (45.4, "45 seconds"), (90, "90 seconds"),
        (150, "2.5 minutes"), (5400, "90 minutes"), (36 * 3600, "36 hours"), (30 * 86400, "30 days"),
        (1.98e4 * 3600, "2.3 years"), (1e12, "31,688 years"),
    ],
)  # fmt: skip
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"), [(100, "0.1 kB"), (3.1e8, "310 MB"), (4.24e9, "4.2 GB"), (5e13, "50 TB")]
)
def test_a_size_in_words(size: float, words: str) -> None:
    assert byte_size(size) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1e-400", "too small"), ("1e-99999999", "too small"), ("1e-50", "too small"), (1e-50, "too small"),
        ("1e999", "too large"), ("1e99999999", "too large"), (1e308, "too large"), (10**60, "too large"),
        ("9" * 5_000, "more than 100 digits"), (10**5_000, "more than 100 digits"), ("8/0", "is not a number"),
        ("1e999/255", "is not a number"), ("1_000", "is not a number"), ("\u0663", "is not a number"),
        (float("nan"), "is not a number"), (float("inf"), "is not a number"), (True, "is not a number"),
    ],
    ids=quoted,
)  # fmt: skip
def test_what_float32_does_not_hold_is_no_number(value: object, words: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=words):
        parse_fraction(value)
    assert time.process_time() - started < 1


def test_a_number_is_exact_and_zero_is_zero_at_any_exponent() -> None:
    assert parse_fraction("1e-9") == Fraction(1, 10**9) and parse_fraction("8/255") == Fraction(8, 255)
    assert parse_fraction("0e-99999999") == 0 and parse_fraction("-0.0") == 0


def test_a_radius_that_changes_no_pixel_value_is_refused() -> None:
    half = torch.tensor(0.5)
    assert half + float(SMALLEST_RADIUS) / 2 == half
    check_radius("l2", "1e-7")
    for radius in ("1e-9", "1e-30", 1e-12):
        with pytest.raises(ValueError, match="below the spacing of float32 pixel values"):
            check_radius("linf", radius)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (10**10, "at most 1,000,000,000"),
        (10**5_000, "bits; must be at most"),
        (-(10**5_000), "bits; must be at least"),
    ],
    ids=quoted,
)
def test_a_count_has_a_largest_value(value: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        count("f", "steps", value)


@pytest.mark.parametrize("value", [-1, 2**53 + 1, 2**64, 10**5_000, 1.5, True, "0"], ids=quoted)
def test_a_seed_is_a_whole_number_of_53_bits(value: object) -> None:
    with pytest.raises(ConfigError, match="f: seed="):
        seed_number("f", value)
    assert seed_number("f", 2**53) == 2**53


def test_numbers_of_float32_are_finite() -> None:
    for value in (1e39, -1e39, float("inf"), float("nan"), 10**5_000):
        with pytest.raises(ConfigError, match="finite number of float32"):
            number("f", "weight", value)
    assert number("f", "weight", -1e38) == -1e38
