"""Robust overfitting as evaluations see it: the mean of PGD-10 accuracies has fallen from its best."""

from __future__ import annotations

import json
import random

import pytest

from trilemma.monitors.decline import DeclineMonitor

# PGD-10 accuracy at every second epoch of a run on 500 photographs that overfits from epoch 11 on
OVERFITS = [0.08, 0.14, 0.16, 0.18, 0.19, 0.14, 0.13, 0.09, 0.10, 0.08, 0.07, 0.08]


def alarms(monitor: DeclineMonitor, readings, first: int = 1, **options):
    """(number, alarm) of the alarms; an evaluation every 10 steps."""
    return [
        (number, alarm)
        for number, robust in enumerate(readings, first)
        for alarm in monitor.read(robust, None, 10 * number, **options)
    ]


def short() -> DeclineMonitor:
    return DeclineMonitor(evaluations=12)


def test_a_run_that_overfits_is_heard_once_and_knows_when_it_was_best() -> None:
    ((number, alarm),) = alarms(short(), OVERFITS)
    assert number == 10 and alarm.name == "robust-overfitting"
    # the last step of the best five evaluations
    assert alarm.onset == 60
    assert alarm.message == "mean held-out PGD accuracy 0.16 -> 0.11"


def test_the_message_has_the_energy_levels_where_they_are_known() -> None:
    monitor = short()
    found = [monitor.read(robust, -0.1 * i, i) for i, robust in enumerate(OVERFITS)]
    assert found[9][0].message == "mean held-out PGD accuracy 0.16 -> 0.11, mean dE(x) -0.5 -> -0.9"


@pytest.mark.parametrize(("evaluations", "window", "drop"), [(49, 5, 0.04), (50, 10, 0.03)])
def test_the_number_of_evaluations_sets_the_window(evaluations: int, window: int, drop: float) -> None:
    def falls_to(last: float) -> list[int]:
        readings = [0.5] * window + [last] * window
        return [number for number, _ in alarms(DeclineMonitor(evaluations), readings)]

    assert falls_to(0.5 - drop + 1e-6) == []
    assert falls_to(0.5 - drop - 1e-6) == [2 * window]


def test_one_bad_evaluation_is_no_fall() -> None:
    assert alarms(DeclineMonitor(), [0.5] * 12 + [0.25] + [0.5] * 12) == []


def test_few_images_need_a_larger_fall() -> None:
    readings = [0.5] * 10 + [0.46] * 10
    assert [number for number, _ in alarms(DeclineMonitor(), readings)] == [18]
    assert [number for number, _ in alarms(DeclineMonitor(), readings, images=512)] == [20]
    assert alarms(DeclineMonitor(), readings, images=200) == []


def test_the_noise_of_512_images_is_no_fall_in_a_healthy_run() -> None:
    """Sixty evaluations on fresh images at a constant accuracy, which is noisier than a run's own fixed ones."""
    generator, rings = random.Random(0), 0
    for _ in range(100):
        readings = [generator.gauss(0.45, (0.45 * 0.55 / 512) ** 0.5) for _ in range(60)]
        rings += bool(alarms(DeclineMonitor(), readings, images=512))
    assert rings <= 8


def test_a_sudden_loss_waits_for_the_next_evaluation() -> None:
    """The first evaluation of a collapse, which the accuracy-gap monitor reports."""
    assert alarms(DeclineMonitor(), [0.5] * 10 + [0.05]) == []
    assert [number for number, _ in alarms(DeclineMonitor(), [0.5] * 10 + [0.2, 0.35])] == [12]


def test_a_network_that_never_exceeded_chance_has_nothing_to_lose() -> None:
    falls = [0.12] * 10 + [0.06] * 10
    assert alarms(DeclineMonitor(), falls) == []
    assert len(alarms(DeclineMonitor(), falls, chance=0.01)) == 1


def test_after_an_interruption_a_whole_window_is_read_again() -> None:
    monitor = DeclineMonitor()
    assert alarms(monitor, [0.5] * 10) == []
    monitor.interrupt()
    assert [number for number, _ in alarms(monitor, [0.4] * 12, first=11)] == [20]


def test_an_alarm_repeats_after_a_recovery_and_after_a_remedy_that_had_its_time() -> None:
    monitor = DeclineMonitor()
    assert len(alarms(monitor, [0.5] * 10 + [0.4] * 10)) == 1
    monitor.silence(230)
    # what was counted before the remedy is forgotten, and the best mean is not
    assert [number for number, _ in alarms(monitor, [0.4] * 10, first=21)] == [30]
    assert alarms(monitor, [0.5] * 10, first=31) == []
    assert [number for number, _ in alarms(monitor, [0.4] * 10, first=41)] == [44]


@pytest.mark.parametrize("cut", range(1, len(OVERFITS)))
def test_saved_and_loaded_in_between_it_says_the_same(cut: int) -> None:
    before, after = short(), short()
    found = alarms(before, OVERFITS[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    found += alarms(after, OVERFITS[cut:], first=cut + 1)
    assert found == alarms(short(), OVERFITS)
