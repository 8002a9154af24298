"""When one count is clearly above another: an exact sign test, so that a few lucky images are no finding."""

from __future__ import annotations

from math import comb

CLEARLY = 0.01


def sign_test(more: int, fewer: int) -> float:
    """The chance of at least ``more`` heads in ``more + fewer`` throws of a fair coin."""
    throws = more + fewer
    ways = sum(comb(throws, heads) for heads in range(more, throws + 1))
    return ways / int(2**throws)


def clearly_more(more: int, fewer: int, at_least: int = 1, chance: float = CLEARLY) -> bool:
    """Whether ``more`` is above ``fewer`` beyond ``chance`` and by ``at_least`` images."""
    return more - fewer >= at_least and sign_test(more, fewer) < chance


def many(count: int, of: int, share: float, at_least: int = 4) -> bool:
    """Whether ``count`` is at least ``share`` of ``of``, and no mere handful."""
    return count >= max(share * of, at_least)
