"""The interval of a mean of a few draws: it covers, it is centred, and it is a function of the draws alone."""

from __future__ import annotations

import numpy as np
import pytest

from trilemma.metrics.interval import bootstrap_interval


@pytest.mark.parametrize(("count", "least"), [(5, 0.90), (10, 0.91)])
def test_it_covers_the_mean_of_few_draws_where_plain_percentiles_do_not(count, least):
    """200 sets of normal draws; the plain percentiles of the bootstrap cover about 84 % with 5 draws."""
    sets = np.random.default_rng(1).normal(3.0, 1.0, (200, count))
    covered = np.mean([low <= 3.0 <= high for low, high in map(bootstrap_interval, sets)])
    assert least <= covered <= 0.98
    plain = np.random.default_rng(2).integers(0, count, (500, count))
    limits = [np.quantile(draws[plain].mean(1), [0.025, 0.975]) for draws in sets]
    assert np.mean([low <= 3.0 <= high for low, high in limits]) < covered - 0.02


def test_it_moves_and_scales_with_the_draws_and_does_not_depend_on_a_seed():
    draws = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0]
    low, high = bootstrap_interval(draws)
    assert low < np.mean(draws) < high and bootstrap_interval(draws) == (low, high)
    assert bootstrap_interval([10 * draw + 1 for draw in draws]) == pytest.approx(
        (10 * low + 1, 10 * high + 1)
    )
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)


@pytest.mark.parametrize("draws", [[1.0] * 4, [], [1.0, 2.0, 3.0, 4.0, float("nan")]])
def test_too_few_draws_have_no_interval(draws):
    with pytest.raises(ValueError, match="at least 5 finite values"):
        bootstrap_interval(draws)
