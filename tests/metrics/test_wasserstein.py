"""The 1-Wasserstein distance: against scipy, and what makes it a distance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance as reference  # type: ignore[import-untyped]

from trilemma.metrics.wasserstein import wasserstein_distance

numbers = st.lists(st.floats(-50, 50, allow_nan=False, width=32), min_size=1, max_size=30)


@given(numbers, numbers)
def test_equals_scipy_also_for_unequal_sizes_and_ties(first, second):
    found = wasserstein_distance(torch.tensor(first), torch.tensor(second))
    assert found == pytest.approx(reference(first, second), abs=1e-5)


def test_a_shift_is_its_own_distance():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert wasserstein_distance(values, values + 3) == pytest.approx(3, abs=1e-6)
    assert wasserstein_distance(values, values.flip(0)) == 0


@pytest.mark.parametrize("bad", [torch.tensor([]), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf])])
def test_refuses_empty_and_non_finite_sets(bad):
    with pytest.raises(ValueError, match="finite"):
        wasserstein_distance(bad, torch.ones(3))
