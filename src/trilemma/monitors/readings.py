"""Scalar metrics of training steps, collected on the device and moved to the host once every n steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trilemma import energies
from trilemma.methods.base import Points, Step

NAMES = (
    "loss", "clean_accuracy", "robust_accuracy", "energy_clean", "energy_adversarial", "energy_generated",
    "delta_marginal", "delta_joint", "shift", "shift_p95", "abnormal", "saturated", "gradient_cosine",
)  # fmt: skip

Reading = dict[str, float | None]


@torch.no_grad()
def read_step(step: Step, labels: Tensor) -> dict[str, Tensor]:
    """Returns the scalars of one step, still on the device; names as in :data:`NAMES`, unavailable ones left out.

    ``saturated`` is the share of generated pixels at or beyond the bounds of [0, 1], ``abnormal`` the
    share of abnormal adversarial examples, ``shift`` the length of (dE(x), dE(x, y)).
    """
    values: dict[str, Tensor] = {"loss": step.loss.detach()}
    if step.clean is not None:
        values["clean_accuracy"] = (step.clean.logits.argmax(1) == labels).float().mean()
        values["energy_clean"] = energies.marginal_energy(step.clean.logits).mean()
    if step.adversarial is not None:
        values["robust_accuracy"] = (step.adversarial.logits.argmax(1) == labels).float().mean()
        values["energy_adversarial"] = energies.marginal_energy(step.adversarial.logits).mean()
    if step.generated is not None:
        values["energy_generated"] = energies.marginal_energy(step.generated.logits).mean()
        images = step.generated.images
        values["saturated"] = ((images <= 0) | (images >= 1)).float().mean()
    if step.clean is not None and step.adversarial is not None:
        marginal, joint = energies.delta_energies(step.clean.logits, step.adversarial.logits, labels)
        shift = energies.shift_length(step.clean.logits, step.adversarial.logits, labels)
        values["delta_marginal"], values["delta_joint"] = marginal.mean(), joint.mean()
        values["shift"] = shift.mean()
        values["shift_p95"] = shift.kthvalue(max(1, round(0.95 * len(shift)))).values
        values["abnormal"] = (joint > marginal).float().mean()
    return values


@torch.no_grad()
def read_gradients(points: Points) -> dict[str, Tensor]:
    """Returns ``gradient_cosine``: of the attack's last input gradient and the loss gradient with respect to x*.

    One cosine per image, averaged over the images that have both gradients (one can vanish in rounding);
    an empty dictionary if the method kept no gradient. The step computes both gradients anyway.
    """
    training_gradient = None if points.adversarial is None else points.adversarial.grad
    if points.gradient is None or training_gradient is None:
        return {}
    # Reduce over three dimensions: flattening would copy a channels-last tensor, at twenty times the cost.
    attack, training, pixels = points.gradient.float(), training_gradient.float(), (1, 2, 3)
    lengths = torch.linalg.vector_norm(attack, dim=pixels) * torch.linalg.vector_norm(training, dim=pixels)
    cosines = (attack * training).sum(pixels) / lengths.clamp_min(torch.finfo(torch.float32).tiny)
    return {"gradient_cosine": cosines.sum() / (lengths > 0).sum().clamp_min(1)}


class Readings:
    """Collects the scalars of steps on the device; :meth:`drain` moves them to the host in one transfer."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor]] = []

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the scalars of one step."""
        self._steps.append(values)

    def __len__(self) -> int:
        return len(self._steps)

    def drain(self, mean: Callable[[Tensor], Tensor]) -> list[Reading]:
        """Removes and returns the collected steps: one dictionary per step, ``None`` for values that it does not have.

        Args:
            mean: averages a tensor over the processes, so that all of them get the same values.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        flat = torch.stack([value.float() for values in steps for value in values.values()])
        host = iter(mean(flat).tolist())
        readings: list[Reading] = []
        for values in steps:
            known = {name: next(host) for name in values}
            readings.append(
                {name: known.get(name) for name in (*NAMES, *(n for n in known if n not in NAMES))}
            )
        return readings


def mean_reading(readings: list[Reading]) -> Reading:
    """Returns the mean over steps of each value, ``None`` for a value that no step had."""
    result: Reading = {}
    for name in readings[0] if readings else ():
        known = [value for reading in readings if (value := reading.get(name)) is not None]
        result[name] = sum(known) / len(known) if known else None
    return result
