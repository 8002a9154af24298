"""The overfitting monitor on synthetic runs whose nature is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from trilemma.monitors.overfitting import SIGNALS, OverfittingMonitor

EPOCH = 40  # steps


def readings(steps: int, noise: float = 0.1, seed: int = 0, **signals):
    """``steps`` readings; a signal is a number or a function of the step, with a relative noise on top."""
    source = np.random.default_rng(seed)
    healthy = {"shift": 1.0, "shift_p95": 2.0, "abnormal": 0.03, "delta_marginal": -0.2}
    for step in range(steps):
        values = {}
        for name, level in {**healthy, **signals}.items():
            value = level(step) if callable(level) else level
            values[name] = float(value * (1 + noise * source.standard_normal()))
        yield values


def alarms(series, monitor=None, every: int = 1):
    """(name, step) of every alarm; with ``every``, the other steps lack the values, as without a clean forward."""
    monitor = monitor or OverfittingMonitor(window=EPOCH)
    found = []
    for step, reading in enumerate(series, start=1):
        shown = reading if (step - 1) % every == 0 else dict.fromkeys(SIGNALS)
        found += [(alarm.name, alarm.step) for alarm in monitor.read(shown, step)]
    return found


def after(step: int, before: float, then: float):
    return lambda at: before if at < step else then


COLLAPSE = 12 * EPOCH
COLLAPSED = {
    "shift": after(COLLAPSE, 1.0, 8.0),
    "shift_p95": after(COLLAPSE, 2.0, 15.0),
    "abnormal": after(COLLAPSE, 0.03, 0.4),
    "delta_marginal": after(COLLAPSE, -0.2, 3.0),
}


def test_a_healthy_run_raises_no_alarm() -> None:
    assert alarms(readings(60 * EPOCH)) == []


@pytest.mark.parametrize("every", [1, 10])
def test_catastrophic_overfitting_alarms_once_and_within_an_epoch(every: int) -> None:
    (alarm,) = alarms(readings(40 * EPOCH, **COLLAPSED), every=every)
    name, step = alarm
    assert name == "catastrophic-overfitting"
    assert COLLAPSE < step <= COLLAPSE + EPOCH


def test_a_milder_collapse_seen_every_tenth_step_still_alarms_within_two_epochs() -> None:
    mild = {
        "shift": after(COLLAPSE, 1.0, 3.5),
        "shift_p95": after(COLLAPSE, 2.0, 7.0),
        "abnormal": after(COLLAPSE, 0.03, 0.3),
    }
    (alarm,) = alarms(readings(30 * EPOCH, **mild), every=10)
    assert COLLAPSE < alarm[1] <= COLLAPSE + 2 * EPOCH


@pytest.mark.parametrize("missing", ["shift", "shift_p95", "abnormal"])
def test_a_jump_that_lacks_one_of_the_three_signals_is_no_catastrophe(missing: str) -> None:
    partly = {name: level for name, level in COLLAPSED.items() if name not in (missing, "delta_marginal")}
    assert alarms(readings(30 * EPOCH, **partly)) == []


@pytest.mark.parametrize(
    "level", [after(5 * EPOCH, -0.02, 0.0155), 0.015, lambda step: 0.02 * np.sin(step / 200)]
)
def test_the_sign_of_the_marginal_shift_alone_never_alarms(level) -> None:
    assert alarms(readings(80 * EPOCH, delta_marginal=level)) == []


@pytest.mark.parametrize("every", [1, 10])
def test_robust_overfitting_alarms_once_on_a_slow_slide(every: int) -> None:
    """The PGD-AT reference run: -0.17 at epoch 10, -0.16 to 45, -0.26 at 78, -0.74 at 99."""

    def slide(step: int) -> float:
        return float(np.interp(step / EPOCH, [0, 10, 45, 78, 99], [-0.05, -0.17, -0.16, -0.26, -0.74]))

    monitor = OverfittingMonitor(window=EPOCH, settled_at=50 * EPOCH)
    (alarm,) = alarms(readings(100 * EPOCH, delta_marginal=slide), monitor, every)
    name, step = alarm
    assert name == "robust-overfitting"
    assert 80 * EPOCH < step < 95 * EPOCH


@pytest.mark.parametrize("epochs", [60, 100])
def test_a_run_that_still_learns_does_not_overfit(epochs: int) -> None:
    """PGD-AT on digits, robust accuracy rising to the end: 0 at epoch 15 of 60, -0.6 at 30, -0.92 at the end."""

    def learning(step: int) -> float:
        levels = [0.0, -0.02, -0.13, -0.42, -0.6, -0.76, -0.87, -0.92]
        return float(np.interp(step / EPOCH * 60 / epochs, [10, 15, 20, 25, 30, 40, 50, 60], levels))

    monitor = OverfittingMonitor(window=EPOCH, settled_at=epochs // 2 * EPOCH)
    assert alarms(readings(epochs * EPOCH, delta_marginal=learning), monitor) == []


def test_nothing_is_said_before_there_is_a_level_to_compare_with() -> None:
    early = {name: after(EPOCH, 0.0, 5.0) for name in ("shift", "shift_p95", "abnormal")}
    found = alarms(readings(3 * EPOCH - 1, **early))
    assert found == []


def test_steps_without_clean_logits_are_passed_over() -> None:
    monitor = OverfittingMonitor(window=EPOCH)
    assert monitor.read({"shift": 1.0, "abnormal": None}, 1) == []
    assert monitor.count == 0


def test_a_collapse_that_creeps_alarms_only_once_the_gradients_have_parted() -> None:
    """FGSM on digits at 0.3: over twenty epochs the abnormal share rises from 0.01 to 0.1, the shift by half."""
    levels: dict[str, Any] = {
        "shift": lambda step: np.interp(step / EPOCH, [20, 40], [0.8, 1.3]),
        "shift_p95": lambda step: np.interp(step / EPOCH, [20, 40], [1.8, 2.9]),
        "abnormal": lambda step: np.interp(step / EPOCH, [20, 40], [0.01, 0.1]),
    }
    for parted, expected in ((False, []), (True, ["catastrophic-overfitting"])):
        monitor, found = OverfittingMonitor(window=EPOCH), []
        for step, reading in enumerate(readings(50 * EPOCH, **levels), start=1):
            found += monitor.read(reading, step, parted and step > 25 * EPOCH)
        assert [alarm.name for alarm in found] == expected
        assert all(28 * EPOCH < alarm.step < 36 * EPOCH for alarm in found)


def test_gradients_that_part_without_abnormal_images_are_no_catastrophe() -> None:
    monitor = OverfittingMonitor(window=EPOCH)
    found = [monitor.read(reading, step, True) for step, reading in enumerate(readings(30 * EPOCH), start=1)]
    assert not any(found)


def test_the_onset_lies_before_the_collapse() -> None:
    monitor = OverfittingMonitor(window=EPOCH)
    found = [a for step, r in enumerate(readings(30 * EPOCH, **COLLAPSED), 1) for a in monitor.read(r, step)]
    assert found[0].onset < COLLAPSE


def test_a_collapse_that_lasts_sounds_again_after_every_remedy_that_did_not_help() -> None:
    monitor, found = OverfittingMonitor(window=EPOCH), []
    for step, reading in enumerate(readings(60 * EPOCH, **COLLAPSED), start=1):
        for alarm in monitor.read(reading, step):
            found.append(alarm.step)
            monitor.once.silence(step + 3 * EPOCH)
    assert len(found) > 8 and min(np.diff(found)) >= 3 * EPOCH


def test_the_message_states_the_figures() -> None:
    monitor = OverfittingMonitor(window=EPOCH)
    found = []
    for step, reading in enumerate(readings(14 * EPOCH, noise=0.0, **COLLAPSED), start=1):
        found += monitor.read(reading, step)
    assert found[0].message.startswith("shift length 1.")
    assert "abnormal 0.0" in found[0].message


@pytest.mark.parametrize("cut", [3, EPOCH, 7 * EPOCH, COLLAPSE + 5, 20 * EPOCH])
def test_a_saved_monitor_goes_on_as_if_never_stopped(cut: int) -> None:
    series = list(readings(25 * EPOCH, **COLLAPSED))
    whole = alarms(series)
    first, second = OverfittingMonitor(EPOCH), OverfittingMonitor(EPOCH)
    found = alarms(series[:cut], first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for step, reading in enumerate(series[cut:], start=cut + 1):
        found += [(alarm.name, alarm.step) for alarm in second.read(reading, step)]
    assert found == whole and whole


def test_a_state_taken_over_does_not_share_memory() -> None:
    monitor = OverfittingMonitor(EPOCH)
    alarms(readings(20), monitor)
    state = monitor.state_dict()
    kept = json.dumps(state)
    alarms(readings(20), monitor)
    assert json.dumps(state) == kept
