"""The early alarm on synthetic runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trilemma.monitors.gradient_cosine import GradientCosineMonitor

WINDOW = 100


def alarms(levels, monitor: GradientCosineMonitor | None = None, first: int = 1, noise: float = 0.02):
    """Steps of the alarms on a series of cosines."""
    monitor = monitor or GradientCosineMonitor(WINDOW)
    source = np.random.default_rng(0)
    found = []
    for step, level in enumerate(levels, first):
        value = None if level is None else float(level + noise * source.standard_normal())
        found += [(alarm.name, alarm.step) for alarm in monitor.read({"gradient_cosine": value}, step)]
    return found


def test_a_fall_alarms_once_and_within_tens_of_steps() -> None:
    ((name, step),) = alarms([0.8] * 1000 + [0.2] * 1000)
    assert name == "gradient-cosine" and 1000 < step <= 1020


def test_the_message_and_the_onset_state_what_was_seen() -> None:
    monitor = GradientCosineMonitor(WINDOW)
    alarms([0.8] * 1000, monitor, noise=0)
    (alarm,) = [a for step in range(1001, 1020) for a in monitor.read({"gradient_cosine": 0.0}, step)]
    assert "mean cosine 0.8 -> 0.4" in alarm.message
    assert alarm.onset == alarm.step - 3 * WINDOW


@pytest.mark.parametrize(
    "levels",
    [
        np.interp(np.arange(3000), [0, 500, 1000, 3000], [0.0, 0.3, 0.88, 0.58]),  # digits, pgd-at
        np.interp(np.arange(50_000), [0, 2000, 50_000], [0.0, 0.9, 0.3]),  # a long run sinks slowly
        np.interp(np.arange(2000), [0, 30, 60, 2000], [0.0, 0.06, 0.0, 0.5]),  # untrained: noise
    ],
)
def test_a_healthy_run_raises_no_alarm(levels) -> None:
    assert alarms(levels) == []


def test_steps_without_a_cosine_are_passed_over() -> None:
    levels = [0.8] * 500 + [None] * 500 + [0.8] * 100
    assert alarms(levels) == []


def test_a_fall_after_a_recovery_alarms_again() -> None:
    found = alarms([0.8] * 500 + [0.1] * 100 + [0.8] * 1500 + [0.1] * 100)
    assert len(found) == 2 and found[1][1] > 2100


def test_after_a_remedy_in_place_there_is_silence_and_then_a_second_alarm() -> None:
    monitor = GradientCosineMonitor(WINDOW)
    assert len(alarms([0.8] * 500 + [0.1] * 20, monitor)) == 1
    monitor.once.silence(820)
    assert alarms([0.1] * 299, monitor, first=521) == []
    ((_, step),) = alarms([0.1] * 100, monitor, first=820)
    assert step == 820


@pytest.mark.parametrize("cut", [5, 300, 1003, 1500])
def test_a_saved_monitor_goes_on_as_if_never_stopped(cut: int) -> None:
    series = [0.8] * 1000 + [0.2] * 800
    first, second = GradientCosineMonitor(WINDOW), GradientCosineMonitor(WINDOW)
    found = alarms(series[:cut], first, noise=0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert found + alarms(series[cut:], second, cut + 1, noise=0) == alarms(series, noise=0)
