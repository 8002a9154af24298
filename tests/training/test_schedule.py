"""Learning rates: landmarks against closed forms, continuity, warm-up."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trilemma.config.sections import ScheduleConfig
from trilemma.training.schedule import rate

TOTAL, PER_EPOCH = 1000, 100


def at(step: int, **shape: Any) -> float:
    return rate(ScheduleConfig(**shape), step, TOTAL, PER_EPOCH)


def test_constant_is_one_everywhere() -> None:
    assert {at(step, name="constant") for step in (0, 1, 500, 999)} == {1.0}


def test_cyclic_is_a_triangle_with_its_tip_at_peak() -> None:
    assert at(0, name="cyclic", peak=0.5) == 0
    assert at(250, name="cyclic", peak=0.5) == pytest.approx(0.5)
    assert at(500, name="cyclic", peak=0.5) == 1
    assert at(750, name="cyclic", peak=0.5) == pytest.approx(0.5)
    assert at(1000, name="cyclic", peak=0.5) == 0
    assert at(400, name="cyclic", peak=0.4) == 1
    assert at(999, name="cyclic", peak=0.4) == pytest.approx(1 / 600)


def test_cosine_falls_from_one_to_zero() -> None:
    assert at(0, name="cosine") == 1
    assert at(1000, name="cosine") == pytest.approx(0, abs=1e-12)
    for step in (1, 250, 500, 900):
        assert at(step, name="cosine") == pytest.approx((1 + math.cos(math.pi * step / 1000)) / 2)


def test_multistep_multiplies_by_factor_after_each_milestone() -> None:
    shape = {"name": "multistep", "milestones": (5, 8), "factor": 0.2}
    values = [at(step, **shape) for step in (0, 499, 500, 799, 800, 999)]
    assert values == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_one_cycle_is_that_of_torch() -> None:
    """Torch places its landmarks at the last step of a phase, so its run is one step longer."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=1.0, total_steps=TOTAL + 1, pct_start=251 / 1001, cycle_momentum=False
    )
    for step in range(TOTAL):
        assert at(step, name="one-cycle", peak=0.25) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        theirs.step()


def test_warm_up_rises_linearly_to_the_schedule() -> None:
    shape: dict[str, Any] = {"name": "cosine", "warmup_steps": 10}
    for step in range(10):
        assert at(step, **shape) == pytest.approx(at(step, name="cosine") * (step + 1) / 10)
    assert at(10, **shape) == at(10, name="cosine")


@given(
    st.sampled_from(["constant", "cyclic", "one-cycle", "cosine"]),
    st.floats(0.05, 0.95),
    st.integers(0, 50),
    st.integers(200, 2000),
)
def test_rates_are_in_the_unit_interval_and_without_jumps(
    name: Any, peak: float, warmup: int, total: int
) -> None:
    schedule = ScheduleConfig(name=name, peak=peak, warmup_steps=warmup)
    values = [rate(schedule, step, total, 10) for step in range(total + 1)]
    assert all(0 <= value <= 1 for value in values)
    steepest = max(math.pi / 2 / (min(peak, 1 - peak) * total), 1 / max(1, warmup))
    gaps = [abs(b - a) for a, b in itertools.pairwise(values)]
    assert max(gaps) <= 1.01 * steepest + (1 / max(1, warmup) if warmup else 0)


def test_steps_beyond_the_run_stay_at_its_end() -> None:
    assert at(2000, name="cyclic") == at(1000, name="cyclic")
