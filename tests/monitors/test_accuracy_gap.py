from __future__ import annotations

import json

import pytest

from trilemma.monitors.accuracy_gap import AccuracyGapMonitor


def alarms(monitor: AccuracyGapMonitor, *gaps: float, first: int = 1):
    """(step, onset) of the alarms; an evaluation every 100 steps."""
    found = []
    for place, gap in enumerate(gaps, first):
        found += monitor.read(0.2 + gap, 0.2, 100 * place)
    return [(alarm.step, alarm.onset) for alarm in found]


@pytest.mark.parametrize("gap", [0.348, 0.5])
def test_the_gaps_of_collapsed_public_runs_alarm(gap: float) -> None:
    assert alarms(AccuracyGapMonitor(), 0.1, 0.15, gap) == [(300, 200)]


def test_the_gaps_of_healthy_public_runs_do_not() -> None:
    assert alarms(AccuracyGapMonitor(), 0.05, 0.187, 0.1, -0.02, 0.187) == []


def test_the_alarm_names_both_accuracies() -> None:
    (alarm,) = AccuracyGapMonitor().read(0.8, 0.05, 7)
    assert alarm.name == "accuracy-gap"
    assert alarm.message == "held-out accuracy 0.80 under FGSM, 0.05 under PGD-10"


def test_it_sounds_again_only_after_a_healthy_gap() -> None:
    assert alarms(AccuracyGapMonitor(), 0.4, 0.28, 0.4, 0.15, 0.4) == [(100, 0), (500, 400)]


def test_after_a_remedy_in_place_there_is_silence_and_then_a_second_alarm() -> None:
    monitor = AccuracyGapMonitor()
    alarms(monitor, 0.1, 0.4)
    monitor.silence(500)
    assert alarms(monitor, 0.4, 0.4, 0.4, first=3) == [(500, 100)]


def test_a_saved_monitor_goes_on_as_if_never_stopped() -> None:
    series = (0.1, 0.4, 0.25, 0.4, 0.1, 0.2, 0.4)
    for cut in range(len(series)):
        first, second = AccuracyGapMonitor(), AccuracyGapMonitor()
        found = alarms(first, *series[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert found + alarms(second, *series[cut:], first=cut + 1) == alarms(AccuracyGapMonitor(), *series)


def test_a_small_gap_alarms_where_one_step_is_lastingly_resisted_twice_as_well() -> None:
    monitor = AccuracyGapMonitor()
    evaluations = [
        (0.12, 0.11),
        (0.15, 0.05),
        (0.15, 0.12),
        (0.16, 0.05),
        (0.16, 0.02),
        (0.20, 0.0),
        (0.2, 0.0),
    ]
    found = [monitor.read(*pair, 100 * place) for place, pair in enumerate(evaluations, 1)]
    assert [(alarm.step, alarm.onset) for alarms in found for alarm in alarms] == [(600, 300)]


def test_chance_alone_is_no_double() -> None:
    monitor = AccuracyGapMonitor()
    assert not any(monitor.read(0.05, 0.01, step) for step in range(10))
