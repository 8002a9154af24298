"""Robust overfitting as evaluations see it: accuracy has fallen from its best, and dE(x) has slid meanwhile."""

from __future__ import annotations

import json

import pytest

from trilemma.monitors.decline import DeclineMonitor

# PGD-10 accuracy and mean dE(x) at every second epoch of a run on 500 photographs that overfits from epoch 11 on
OVERFITS = [
    (0.08, 0.0), (0.14, -0.02), (0.16, -0.06), (0.18, -0.06), (0.19, -0.07), (0.14, -0.08), (0.13, -0.1),
    (0.09, -0.4), (0.10, -0.6), (0.06, -0.8), (0.05, -0.9), (0.08, -0.95),
]  # fmt: skip


def alarms(monitor: DeclineMonitor, readings, first: int = 0):
    found = []
    for number, (robust, level) in enumerate(readings, first):
        found += [(number, alarm) for alarm in monitor.read(robust, level, 10 * (number + 1))]
    return found


def test_a_run_that_overfits_is_heard_once_and_knows_when_it_was_best() -> None:
    ((number, alarm),) = alarms(DeclineMonitor(), OVERFITS)
    assert number == 7 and alarm.name == "robust-overfitting"
    assert alarm.onset == 50  # the step of the best evaluation
    assert alarm.message == "held-out PGD-10 accuracy 0.19 -> 0.12, mean dE(x) -0.07 -> -0.4"


def test_neither_a_slide_nor_a_fall_is_enough_alone() -> None:
    assert alarms(DeclineMonitor(), [(robust, -0.07) for robust, _ in OVERFITS]) == []
    assert alarms(DeclineMonitor(), [(0.1 + 0.01 * i, level) for i, (_, level) in enumerate(OVERFITS)]) == []


def test_one_bad_evaluation_is_no_fall() -> None:
    assert alarms(DeclineMonitor(), [(0.3, 0.0), (0.2, -1.0), (0.3, -1.0), (0.29, -1.0), (0.28, -1.0)]) == []


def test_the_energy_that_counts_is_the_one_at_the_best_evaluation() -> None:
    """A network that is still learning: dE(x) far below 0, and the best accuracy there."""
    learns = [(0.1, 0.0), (0.2, -0.5), (0.3, -1.0), (0.2, -1.1), (0.2, -1.1), (0.2, -1.1)]
    assert alarms(DeclineMonitor(), learns) == []
    assert len(alarms(DeclineMonitor(), [*learns, (0.2, -1.21)])) == 1


def test_it_sounds_again_after_a_better_evaluation_and_after_a_remedy_only_when_that_had_its_time() -> None:
    monitor = DeclineMonitor()
    assert len(alarms(monitor, OVERFITS)) == 1
    monitor.silence(150)
    ill = [(0.05, -1.0)] * 4
    ((number, _),) = alarms(monitor, ill, first=12)
    assert number == 14  # step 150, the first that is not silent
    again = [(0.4, -1.0), (0.2, -1.3), (0.2, -1.3), (0.2, -1.3)]
    assert [number for number, _ in alarms(monitor, again, first=20)] == [23]


@pytest.mark.parametrize("cut", range(1, len(OVERFITS)))
def test_saved_and_loaded_in_between_it_says_the_same(cut: int) -> None:
    before, after = DeclineMonitor(), DeclineMonitor()
    found = alarms(before, OVERFITS[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    found += alarms(after, OVERFITS[cut:], first=cut)
    assert found == alarms(DeclineMonitor(), OVERFITS)
