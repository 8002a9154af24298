"""Which rung an alarm is answered with, and what its actions mean."""

from __future__ import annotations

from typing import Any

import pytest
from tests.training.support import tiny

from trilemma.config.config import Config
from trilemma.config.recipe import with_options
from trilemma.monitors.monitor import Alarm, Rollback, ScaleRate, SetOption, Stop
from trilemma.monitors.remedies import remedies

DIVERGED = Alarm("divergence", "loss is nan", 7)
COLLAPSED = Alarm("catastrophic-overfitting", "", 100, lag=30)


def config(ladder: Any = None, alarm: str = "catastrophic-overfitting", **sections: Any) -> Config:
    monitors = {} if ladder is None else {"remedies": {alarm: ladder}}
    return tiny("n-fgsm", monitors={**monitors, **sections.pop("monitors", {})}, **sections)


def test_an_alarm_knows_the_last_healthy_step() -> None:
    assert DIVERGED.onset == 6 and COLLAPSED.onset == 70
    assert Alarm("robust-overfitting", "", 5, lag=50).onset == 0


def test_a_divergence_goes_back_and_slows_down_until_the_limit_then_fails() -> None:
    for rollbacks in range(3):
        assert remedies(DIVERGED, config(), rollbacks, rollbacks) == [Rollback(), ScaleRate(0.3)]
    assert remedies(DIVERGED, config(), 3, 3) == [Stop(failed=True)]
    assert remedies(DIVERGED, config(monitors={"max_rollbacks": 0}), 0, 0) == [Stop(failed=True)]


@pytest.mark.parametrize("ladder", [[], "stop"])
def test_a_diverged_run_has_no_good_order_to_end_in(ladder: Any) -> None:
    assert remedies(DIVERGED, config(ladder, "divergence"), 0, 0) == [Stop(failed=True)]
    assert remedies(DIVERGED, config(monitors={"divergence": False}), 0, 0) == [Stop(failed=True)]


@pytest.mark.parametrize(
    "name", ["catastrophic-overfitting", "robust-overfitting", "gradient-cosine", "accuracy-gap"]
)
def test_an_overfitting_alarm_asks_for_nothing_by_itself(name: str) -> None:
    assert remedies(Alarm(name, "", 1), config(), 0, 0) == []


def test_the_rungs_are_climbed_one_by_one_and_the_last_repeats() -> None:
    ladder = config([["rollback", "scale-rate"], "scale-rate", "stop"])
    asked = [remedies(COLLAPSED, ladder, sounded, 1) for sounded in range(4)]
    assert asked == [[Rollback(), ScaleRate(0.3)], [ScaleRate(0.3)], [Stop(False)], [Stop(False)]]


def test_going_back_once_too_often_is_a_failure_for_every_alarm() -> None:
    assert remedies(COLLAPSED, config([["rollback", "der"]]), 0, 3) == [Stop(failed=True)]
    assert remedies(COLLAPSED, config(["der"]), 0, 3) != [Stop(failed=True)]


def test_der_is_turned_on_and_then_raised() -> None:
    before = config(["der"], monitors={"der_beta": 0.5})
    asked = remedies(COLLAPSED, before, 0, 0)
    assert asked == [
        SetOption("der", "regulariser.name", "der"), SetOption("der", "regulariser.beta", 0.5)
    ]  # fmt: skip
    options = {remedy.key: remedy.value for remedy in asked if isinstance(remedy, SetOption)}
    after = with_options(before, options)
    assert after.regulariser is not None and after.regulariser.beta == 0.5
    assert remedies(COLLAPSED, after, 1, 0) == [SetOption("der", "regulariser.beta", 1.0)]


def test_a_regulariser_of_no_weight_gets_one() -> None:
    idle = config(["der"], regulariser={"name": "der", "beta": 0.0})
    assert remedies(COLLAPSED, idle, 0, 0) == [SetOption("der", "regulariser.beta", 3.0)]


@pytest.mark.parametrize(
    ("method", "regulariser", "beta"),
    [
        ("fgsm", None, 3.0),
        ("pgd-at", None, 0.3),
        ("fgsm", {"name": "der", "beta": 0.0, "form": "multi-step"}, 0.3),
        ("pgd-at", {"name": "der", "beta": 0.0, "form": "single-step"}, 3.0),
    ],
)
def test_der_is_turned_on_with_the_weight_of_its_form(method: str, regulariser: Any, beta: float) -> None:
    monitors = {"remedies": {COLLAPSED.name: ["der"]}}
    asked = remedies(COLLAPSED, tiny(method, monitors=monitors, regulariser=regulariser), 0, 0)
    assert asked[-1] == SetOption("der", "regulariser.beta", beta)


def test_two_steps_of_half_the_radius() -> None:
    asked = remedies(COLLAPSED, config(["pgd-2"], threat={"radius": "8/255"}), 0, 0)
    assert asked == [SetOption("pgd-2", "attack.steps", 2), SetOption("pgd-2", "attack.step_size", "4/255")]


def test_options_of_the_user() -> None:
    asked = remedies(COLLAPSED, config([{"set": {"attack.steps": 3, "method.noise": 1.5}}]), 0, 0)
    assert asked == [SetOption("set", "attack.steps", 3), SetOption("set", "method.noise", 1.5)]
