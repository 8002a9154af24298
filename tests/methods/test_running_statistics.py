"""Which images move BatchNorm's running statistics: clean ones, and x* where a method forwards no clean image."""

from __future__ import annotations

import pytest
import torch

import trilemma
from trilemma.config.registry import METHODS
from trilemma.methods import MethodState, Points

MOVED_BY = {
    "standard": "clean",
    "pgd-at": "adversarial",
    "n-fgsm": "adversarial",
    "trades": "clean",
    "sada-jem": "clean",
    "jeat": "adversarial",
    "eb-jdat": "clean",
    "jem": "clean",
    "jem++": "clean",
    "prejeat": "adversarial",
    "eb-jdat-release": "clean",
}


@pytest.mark.parametrize("name", MOVED_BY)
def test_the_running_statistics_are_those_of_one_forward_of_the_right_images(toy, name: str) -> None:
    names = ("clean", "adversarial", "generated", "data")
    points = Points(labels=toy.labels(), **{role: toy.images(seed=k) for k, role in enumerate(names)})
    threat = trilemma.Threat("linf", 0.1) if METHODS.options(name).uses_attack else None
    clf, alone = toy.conv().train(), toy.conv().train()
    trilemma.methods.create(name, threat).terms(clf, points, MethodState(0)).loss.backward()
    alone.logits(getattr(points, MOVED_BY[name]))
    for buffer, wanted in zip(clf.buffers(), alone.buffers(), strict=True):
        assert torch.equal(buffer, wanted)


@pytest.mark.parametrize("name", ["trades", "eb-jdat"])
def test_each_set_is_normalised_by_its_own_batch(toy, name: str) -> None:
    scales = {"clean": 1.0, "adversarial": 0.5, "generated": 0.2, "data": 0.9}
    images = {role: scale * toy.images(seed=k) for k, (role, scale) in enumerate(scales.items())}
    points = Points(labels=toy.labels(), **images)
    clf = toy.conv().train()
    step = trilemma.methods.create(name, trilemma.Threat("linf", 0.1)).terms(clf, points, MethodState(0))
    for seen in (step.clean, step.adversarial, step.generated):
        if seen is None:
            continue
        torch.testing.assert_close(clf.logits(seen.images).detach(), seen.logits)
