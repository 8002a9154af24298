"""The Wilson interval against published and independently computed values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from trilemma.metrics.accuracy import share, wilson_interval


@pytest.mark.parametrize(
    ("successes", "count", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_table_of_newcombe_1998(successes, count, lower, upper):
    assert wilson_interval(successes, count) == pytest.approx((lower, upper), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy_and_holds_the_share(pair):
    successes, count = pair
    lower, upper = wilson_interval(successes, count)
    reference = binomtest(successes, count).proportion_ci(method="wilson")
    assert (lower, upper) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert 0 <= lower <= successes / count <= upper <= 1


def test_wilson_ends_are_exact_where_all_or_none_succeed():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_share(successes, count):
    with pytest.raises(ValueError, match="is not a share"):
        wilson_interval(successes, count)


def test_share_counts_true_entries():
    found = share(torch.tensor([True, False, True, True]))
    assert (found.value, found.count) == (0.75, 4)
    assert (found.lower, found.upper) == wilson_interval(3, 4)
