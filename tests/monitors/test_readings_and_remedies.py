from __future__ import annotations

import numpy as np
import pytest
import torch

from ebat.methods import Step
from ebat.methods.base import Seen
from ebat.monitors.alarm import Alarm, Rollback, ScaleRate, Stop, remedies
from ebat.monitors.readings import NAMES, Readings, mean_reading, read_step

DIVERGED = Alarm("divergence", "loss is nan", 7)


def test_a_divergence_goes_back_and_slows_down_until_the_limit_then_stops() -> None:
    for rollbacks in range(3):
        assert remedies(DIVERGED, rollbacks, 3, 0.3) == [Rollback(), ScaleRate(0.3)]
    assert remedies(DIVERGED, 3, 3, 0.3) == [Stop()]
    assert remedies(DIVERGED, 0, 0, 0.3) == [Stop()]


@pytest.mark.parametrize("name", ["catastrophic-overfitting", "robust-overfitting"])
def test_an_overfitting_alarm_asks_for_nothing_by_itself(name: str) -> None:
    assert remedies(Alarm(name, "", 1), 0, 3, 0.3) == []


def seen_step(toy):
    """A step with all three image sets, and the NumPy logits of each."""
    clf = toy.mlp()
    images = [toy.images(40, seed=seed) for seed in range(3)]
    images[2][:10] = 0.0
    images[2][10:20] = 1.2  # a jem chain beyond the box
    parts = [Seen(x, clf.logits(x).detach()) for x in images]
    return Step(torch.tensor(2.5), parts[0], parts[1], parts[2]), [toy.logits64(clf, x) for x in images]


def test_a_step_is_read_as_its_definitions(toy) -> None:
    step, (f, g, h) = seen_step(toy)
    labels = toy.labels(40)
    y, rows = labels.numpy(), np.arange(40)
    energy = {name: -np.log(np.exp(a).sum(1)) for name, a in zip("fgh", (f, g, h), strict=True)}
    marginal, joint = energy["f"] - energy["g"], g[rows, y] - f[rows, y]
    shift = np.hypot(marginal, joint)
    wanted = {
        "loss": 2.5,
        "clean_accuracy": (f.argmax(1) == y).mean(),
        "robust_accuracy": (g.argmax(1) == y).mean(),
        "energy_clean": energy["f"].mean(),
        "energy_adversarial": energy["g"].mean(),
        "energy_generated": energy["h"].mean(),
        "delta_marginal": marginal.mean(),
        "delta_joint": joint.mean(),
        "shift": shift.mean(),
        "shift_p95": np.sort(shift)[37],  # the 38th of 40
        "abnormal": (joint > marginal).mean(),
        "saturated": 0.5,
    }
    values = read_step(step, labels)
    assert set(values) == set(wanted) == set(NAMES)
    for name, value in wanted.items():
        np.testing.assert_allclose(values[name].item(), value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_what_a_method_does_not_see_is_left_out(toy) -> None:
    step, _ = seen_step(toy)
    only_adversarial = read_step(Step(step.loss, adversarial=step.adversarial), toy.labels(40))
    assert set(only_adversarial) == {"loss", "robust_accuracy", "energy_adversarial"}


def test_readings_are_moved_at_once_and_in_order() -> None:
    readings, moved = Readings(), []

    def mean(values: torch.Tensor) -> torch.Tensor:  # over two processes, the other one has zeros
        moved.append(values)
        return values / 2

    readings.add({"loss": torch.tensor(1.0), "energy_clean": torch.tensor(-2.0)})
    readings.add({"loss": torch.tensor(3.0), "terms/natural": torch.tensor(4.0)})
    assert len(readings) == 2
    first, second = readings.take(mean)
    assert len(moved) == 1
    assert first["loss"] == 0.5 and first["energy_clean"] == -1.0 and first["shift"] is None
    assert second["loss"] == 1.5 and second["terms/natural"] == 2.0 and second["energy_clean"] is None
    assert len(readings) == 0 and readings.take(mean) == []
    together = mean_reading([first, second])
    assert together["loss"] == 1.0 and together["energy_clean"] == -1.0 and together["shift"] is None
