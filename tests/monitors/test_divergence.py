from __future__ import annotations

import json
import math

import pytest

from trilemma.monitors.divergence import DivergenceMonitor

HEALTHY = {
    "loss": 1.2, "energy_clean": -8.0, "energy_adversarial": -7.0, "energy_generated": -9.0, "saturated": 0.4,
    "clean_accuracy": 0.9, "robust_accuracy": None,
}  # fmt: skip


def alarms(monitor: DivergenceMonitor, count: int, **change):
    found = [(step, monitor.read({**HEALTHY, **change}, step)) for step in range(1, count + 1)]
    return [(step, alarm) for step, alarm in found if alarm is not None]


def test_a_healthy_run_raises_no_alarm() -> None:
    assert alarms(DivergenceMonitor(), 500) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "energy_generated", "terms/contrastive"])
def test_a_value_that_is_not_finite_alarms_at_once(name: str, value: float) -> None:
    ((step, alarm),) = alarms(DivergenceMonitor(), 1, **{name: value})
    assert (step, alarm.name, alarm.step) == (1, "divergence", 1)
    assert alarm.message.startswith(f"{name} is ")


@pytest.mark.parametrize("name", ["energy_clean", "energy_adversarial", "energy_generated"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_exploding_energy_alarms_at_once(name: str, sign: int) -> None:
    ((_, alarm),) = alarms(DivergenceMonitor(), 1, **{name: sign * 2e4})
    assert alarm.message == f"{name} is {sign * 2e4:.3g}, beyond 10000"


def test_energies_that_stay_apart_alarm_after_some_patience() -> None:
    monitor = DivergenceMonitor()
    ((step, alarm),) = alarms(monitor, 25, energy_generated=-300.0)
    assert step == 20 and "real -8 and generated -300 energies have come apart" in alarm.message


def test_a_contrastive_term_without_floor_alarms_though_the_classified_images_stay() -> None:
    ((step, alarm),) = alarms(DivergenceMonitor(), 25, **{"terms/contrastive": -650.0})
    assert step == 20 and "the contrastive term is -650" in alarm.message


def test_adversarial_energies_stand_for_clean_ones_where_there_are_none() -> None:
    change = {"energy_clean": None, "energy_generated": -300.0}
    ((_, alarm),) = alarms(DivergenceMonitor(), 20, **change)
    assert "real -7" in alarm.message


def test_a_gap_that_closes_again_is_forgotten() -> None:
    monitor = DivergenceMonitor()
    for _ in range(5):
        assert alarms(monitor, 19, energy_generated=-300.0) == []
        assert alarms(monitor, 1) == []


def test_samples_at_the_edge_of_the_box_alarm_after_some_patience() -> None:
    monitor = DivergenceMonitor()
    ((step, alarm),) = alarms(monitor, 25, saturated=0.99)
    assert step == 20 and alarm.message == "99% of the samples' pixels are at the edge of the box"


def test_values_that_are_absent_are_no_trouble() -> None:
    absent = dict.fromkeys(HEALTHY)
    assert DivergenceMonitor().read(absent, 1) is None
    assert DivergenceMonitor().read({}, 1) is None


def test_patience_survives_a_restart() -> None:
    first, second = DivergenceMonitor(), DivergenceMonitor()
    alarms(first, 15, energy_generated=-300.0, saturated=1.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    ((step, _),) = alarms(second, 5, energy_generated=-300.0)
    assert step == 5
