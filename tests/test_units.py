"""Durations and sizes in words."""

from __future__ import annotations

import pytest

from trilemma.units import byte_size, duration


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
