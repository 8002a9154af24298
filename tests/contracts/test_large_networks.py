"""Every method on WRN-16-10, 100 classes, 64x64 pixels: shapes alone (meta device), so no memory and no arithmetic."""

from __future__ import annotations

import pytest
import torch

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.config.registry import METHODS
from trilemma.data.image_set import ImageSet
from trilemma.networks.create import create_network
from trilemma.networks.options import WideResNetOptions

CLASSES, SHAPE = 100, (3, 64, 64)


@pytest.fixture(scope="module")
def clf() -> Classifier:
    with torch.device("meta"):
        network = create_network(WideResNetOptions(depth=16, width=10), CLASSES, SHAPE)
    return Classifier(network, CLASSES, [0.5] * 3, [0.5] * 3, image_shape=SHAPE).to("meta").train()


@pytest.mark.parametrize("name", METHODS.names())
def test_a_step_fits_a_large_network_and_reaches_all_its_weights(clf: Classifier, name: str) -> None:
    kind = METHODS.options(name)
    method = trilemma.methods.create(
        name,
        trilemma.Threat("linf", "8/255") if kind.uses_attack else None,
        attack={"steps": 1} if kind.attack_defaults else None,
        sampler={"buffer_size": CLASSES, "steps": 1, "start": "uniform"} if kind.uses_sampler else None,
    )
    labels = torch.arange(2 * CLASSES) % CLASSES
    names = tuple(str(k) for k in range(CLASSES))
    data = ImageSet(torch.zeros(2 * CLASSES, *SHAPE, dtype=torch.uint8), labels, names, "black", "train")
    images = torch.zeros(4, *SHAPE, device="meta")
    views = {view: torch.zeros_like(images) for view in method.views}
    batch = trilemma.Batch(images, torch.zeros(4, dtype=torch.int64, device="meta"), views)

    clf.zero_grad()
    step = method.loss(clf, batch, method.init_state(clf, data, seed=0))
    step.loss.backward()
    assert step.loss.shape == () and step.loss.device.type == "meta"
    assert all(p.grad is not None and p.grad.shape == p.shape for p in clf.parameters())
