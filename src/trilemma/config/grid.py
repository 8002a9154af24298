"""Grids of configurations: ``seed=0..4 method.beta=0.1,1`` names every combination of the values."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trilemma.config.overrides import NAMED
from trilemma.config.yaml_text import parse_value
from trilemma.errors import ConfigError

# Short for the key that sweeps vary most.
SEED, SEED_KEY = "seed", "training.seed"
# Values of one key; a larger range is a slip.
MOST_VALUES = 100_000
_SEVERAL = (list, tuple, range)
_INTEGERS = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)")
_OTHER_RANGE = re.compile(r"-?[0-9.]+\.\.-?[0-9.]+")
# The character that ends a value which begins with the other one.
_CLOSING = {"[": "]", "{": "}", '"': '"', "'": "'"}


@dataclass(frozen=True)
class Grid:
    """Values by dotted key.

    Attributes:
        fixed: the keys with one value, which all combinations share.
        varying: the keys with several values, each once and in their order.
    """

    fixed: Mapping[str, Any]
    varying: Mapping[str, Sequence[Any]]

    @property
    def count(self) -> int:
        """Number of combinations."""
        return math.prod(len(values) for values in self.varying.values())

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of the values of the varying keys; the last key varies fastest."""
        for values in itertools.product(*self.varying.values()):
            yield dict(zip(self.varying, values, strict=True))

    def varied_by(self, keys: Iterable[str]) -> Grid:
        """The same grid, in which those of ``keys`` that have one value count as varying, in the order of ``keys``."""
        values = {key: self.varying.get(key, [self.fixed.get(key)]) for key in keys if key in self}
        others = {key: value for key, value in self.varying.items() if key not in values}
        return Grid({key: value for key, value in self.fixed.items() if key not in values}, values | others)

    def __contains__(self, key: str) -> bool:
        return key in self.fixed or key in self.varying


def parse_grid(entries: Iterable[str]) -> Grid:
    """The grid of ``["seed=0..4", "method.beta=0.1,1", "training.epochs=5"]``.

    Commas separate values, and ``a..b`` stands for the integers from a to b, both included. Commas inside of brackets,
    braces and quotes separate nothing: ``key=[1, 2]`` is one value, a list.

    Raises:
        ConfigError: an entry that is not ``key=value``, an empty value or range, or a key that is given twice.
    """
    flat: dict[str, Sequence[Any]] = {}
    single = set()
    for entry in entries:
        key, equals, text = entry.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"override {entry!r} is not of the form key=value, such as seed=0..4")
        where = f"override {key}={text}"
        parts = _split(text)
        if len(parts) > 1 and "" in parts:
            raise ConfigError(f"{where}: an empty value between commas; remove the comma, or write null")
        several = [value for part in parts for value in _values(part, where)]
        _add(flat, key, several)
        if len(parts) == 1 and not _INTEGERS.fullmatch(parts[0]):
            single.add(_full_key(key, several))
    return _grid(flat, single)


def grid_of(values: Mapping[str, Any]) -> Grid:
    """The grid of ``{"seed": range(5), "method.beta": [0.1, 1]}``; a list, tuple or range holds several values.

    Raises:
        ConfigError: a list without values, or two spellings of one key.
    """
    flat: dict[str, Sequence[Any]] = {}
    single = set()
    for key, given in values.items():
        # As they are read back from a file: a path becomes a text, a number of NumPy too.
        several = json.loads(json.dumps(list(given) if isinstance(given, _SEVERAL) else [given], default=str))
        if not several:
            raise ConfigError(f"{key}: has no values; give at least one, or leave the key out")
        _add(flat, key, several)
        if not isinstance(given, _SEVERAL):
            single.add(_full_key(key, several))
    return _grid(flat, single)


def _grid(flat: Mapping[str, Sequence[Any]], single: set[str]) -> Grid:
    # The seed varies fastest, so that runs to be averaged stand together.
    order = sorted(flat, key=lambda key: key == SEED_KEY)
    return Grid(
        {key: flat[key][0] for key in order if key in single},
        {key: _distinct(flat[key]) for key in order if key not in single},
    )


def _add(flat: dict[str, Sequence[Any]], key: str, values: Sequence[Any]) -> None:
    full = _full_key(key, values)
    if full in flat:
        raise ConfigError(f"{key} is given twice; give all its values at once, such as {key}=1,2")
    if len(values) > MOST_VALUES:
        raise ConfigError(f"{key}: {len(values):,} values; at most {MOST_VALUES:,} are possible")
    flat[full] = values


def _full_key(key: str, values: Sequence[Any]) -> str:
    """The dotted key: ``seed`` is ``training.seed``, and names of a section are values of its key ``name``."""
    if key == SEED:
        return SEED_KEY
    return f"{key}.name" if key in NAMED and all(isinstance(value, str) for value in values) else key


def _values(text: str, where: str) -> Sequence[Any]:
    """The values of one part between commas.

    Raises:
        ConfigError: an empty range, a range of other numbers than integers, or not a value.
    """
    if match := _INTEGERS.fullmatch(text):
        try:
            first, last = map(int, match.groups())
        except ValueError:
            raise ConfigError(f"{where}: a number of the range is too long") from None
        if last < first:
            raise ConfigError(f"{where}: the range is empty; write {last}..{first}")
        if last - first >= MOST_VALUES:
            raise ConfigError(f"{where}: {last - first + 1:,} values; at most {MOST_VALUES:,} are possible")
        return range(first, last + 1)
    if _OTHER_RANGE.fullmatch(text):
        raise ConfigError(
            f"{where}: a range is of two integers, such as 0..4; separate other values with commas"
        )
    return [parse_value(text, where)]


def _split(text: str) -> list[str]:
    """The parts between commas that are outside of brackets, braces and quotes, without spaces around them."""
    parts, start, open_ = [], 0, ""
    for index, character in enumerate(text):
        if open_ and character == open_[-1]:
            open_ = open_[:-1]
        elif open_[-1:] in ('"', "'"):
            continue
        # A quote inside of a plain text, such as an apostrophe, is part of it.
        elif character in _CLOSING and (open_ or not text[start:index].strip()):
            open_ += _CLOSING[character]
        elif character == "," and not open_:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of their first occurrence; ``1`` and ``true`` are two values."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())
