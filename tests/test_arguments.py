"""Numbers and norms as people write them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from trilemma.config.recipe import load_config
from trilemma.errors import ConfigError
from trilemma.threat import Threat
from trilemma.units import choice, count, length, number, parse_norm, whole_number


@pytest.mark.parametrize(
    ("norm", "spellings"),
    [
        ("linf", ("linf", "Linf", "L_INF", "l-inf", "L inf", "inf", "Infinity", math.inf, np.float32("inf"))),
        ("l2", ("l2", "L2", "l_2", "2", 2, 2.0, np.int64(2))),
    ],
)  # fmt: skip
def test_a_norm_in_every_spelling(norm: str, spellings: tuple[Any, ...]) -> None:
    for spelling in spellings:
        assert parse_norm(spelling) == norm
        assert Threat(spelling, "0.5").norm == norm


@pytest.mark.parametrize("value", ["l1", "", 1, True, None, -math.inf, math.nan, ["l2"], "l3"])
def test_other_norms_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="unknown; choose one of linf, l2"):
        Threat(value, "0.5")


def test_a_recipe_takes_them_too() -> None:
    threat = load_config("digits/pgd-at", {"threat.norm": "L_inf"}).threat
    assert threat is not None and threat.norm == "linf"


@pytest.mark.parametrize(
    ("radius", "written"),
    [
        (8 / 255, "8/255"),
        (0.2, "0.2"),
        (1, "1"),
        (0.5, "0.5"),
        ("4 / 255", "4/255"),
        (np.float64(2 / 255), "2/255"),
    ],
)
def test_a_radius_is_written_as_in_papers_without_changing_it(radius: Any, written: str) -> None:
    threat = Threat("linf", radius)
    assert threat.radius == written
    if not isinstance(radius, str):
        assert threat.epsilon == radius


def test_a_threat_of_what_is_passed() -> None:
    stored = Threat("l2", "0.5")
    assert Threat.of(None, default=stored) is stored
    assert Threat.of(0.1) == Threat("linf", 0.1)
    assert Threat.of("1/2", "L2") == Threat("l2", "1/2")
    assert Threat.of(stored, 2) is stored
    with pytest.raises(ConfigError, match="none given"):
        Threat.of(None, "l2")
    with pytest.raises(ConfigError, match="contradicts"):
        Threat.of(stored, "linf")


def test_numbers_of_any_kind() -> None:
    assert (count("f", "n", np.int64(3)), type(count("f", "n", np.int64(3)))) == (3, int)
    assert count("f", "n", 0, 0) == 0
    assert whole_number("f", "n", -4) == -4
    assert length("f", "x", "2/255") == 2 / 255
    assert length("f", "x", Fraction(1, 4)) == length("f", "x", np.float32(0.25)) == 0.25
    assert length("f", "x", 0, zero=True) == 0
    assert number("f", "x", np.float64(-1.5)) == -1.5


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (lambda value: count("f", "n", value), (0, -1, True, 1.0, "1", None, math.nan, [1])),
        (lambda value: whole_number("f", "n", value), (True, 1.5, "1", None)),
        (lambda value: length("f", "n", value), (0, -1, True, "a", "", None, math.nan, math.inf, [1])),
        (lambda value: number("f", "n", value), (True, "1", None, math.nan, math.inf)),
        (lambda value: choice("f", "n", value, ["a", "b"]), ("c", None, 1, ["a"])),
    ],
)
def test_what_is_no_such_number_is_named(check: Any, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=r"^f: n"):
            check(value)
