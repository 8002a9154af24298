from __future__ import annotations

import numpy as np
import torch

from trilemma.methods import Step
from trilemma.methods.base import ForwardResult, Points
from trilemma.monitors.readings import NAMES, Readings, mean_reading, read_gradients, read_step


def seen_step(toy):
    """A step with all three image sets, and the NumPy logits of each."""
    clf = toy.mlp()
    images = [toy.images(40, seed=seed) for seed in range(3)]
    images[2][:10] = 0.0
    images[2][10:20] = 1.2  # a jem chain beyond the box
    parts = [ForwardResult(x, clf.logits(x).detach()) for x in images]
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
    assert set(values) == set(wanted) == set(NAMES) - {"gradient_cosine"}
    for name, value in wanted.items():
        np.testing.assert_allclose(values[name].item(), value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_what_a_method_does_not_see_is_left_out(toy) -> None:
    step, _ = seen_step(toy)
    only_adversarial = read_step(Step(step.loss, adversarial=step.adversarial), toy.labels(40))
    assert set(only_adversarial) == {"loss", "robust_accuracy", "energy_adversarial"}


def test_the_cosine_is_a_mean_over_the_images_that_have_both_gradients(toy) -> None:
    source = np.random.default_rng(0)
    attack, training = source.standard_normal((2, 6, 1, 4, 4))
    attack[4], training[5] = 0, 0  # vanished in rounding: no direction to compare
    a, b = attack[:4].reshape(4, -1), training[:4].reshape(4, -1)
    wanted = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
    starred = toy.images(6).requires_grad_()
    starred.grad = torch.tensor(training, dtype=torch.float32)
    points = Points(toy.images(6), toy.labels(6), starred, gradient=torch.tensor(attack, dtype=torch.float32))
    np.testing.assert_allclose(read_gradients(points)["gradient_cosine"].item(), wanted, rtol=1e-5)


def test_without_both_gradients_there_is_no_cosine(toy) -> None:
    x, y = toy.images(6), toy.labels(6)
    starred = toy.images(6).requires_grad_()
    assert read_gradients(Points(x, y)) == {}
    assert read_gradients(Points(x, y, starred, gradient=torch.ones_like(x))) == {}
    starred.grad = torch.ones_like(x)
    assert read_gradients(Points(x, y, starred)) == {}
    vanished = Points(x, y, starred, gradient=torch.zeros_like(x))
    assert read_gradients(vanished)["gradient_cosine"] == 0  # not NaN


def test_readings_are_moved_at_once_and_in_order() -> None:
    readings, moved = Readings(), []

    def mean(values: torch.Tensor) -> torch.Tensor:  # over two processes, the other one has zeros
        moved.append(values)
        return values / 2

    readings.add({"loss": torch.tensor(1.0), "energy_clean": torch.tensor(-2.0)})
    readings.add({"loss": torch.tensor(3.0), "terms/natural": torch.tensor(4.0)})
    assert len(readings) == 2
    first, second = readings.drain(mean)
    assert len(moved) == 1
    assert first["loss"] == 0.5 and first["energy_clean"] == -1.0 and first["shift"] is None
    assert second["loss"] == 1.5 and second["terms/natural"] == 2.0 and second["energy_clean"] is None
    assert len(readings) == 0 and readings.drain(mean) == []
    together = mean_reading([first, second])
    assert together["loss"] == 1.0 and together["energy_clean"] == -1.0 and together["shift"] is None
