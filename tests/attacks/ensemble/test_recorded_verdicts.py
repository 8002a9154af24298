"""AutoAttack's verdicts against recorded ones of the reference implementation: of the first 100 images in each norm,
all that the reference breaks, and twelve of those that it does not, which cost the most.

All images of all reference networks: ``benchmarks/reference_verdicts.py``.
"""

from __future__ import annotations

import pytest
import torch
from tests.reference_models import reference, verdicts

from trilemma.attacks import autoattack

COUNT, ROBUST, MISCLASSIFIED = 100, 12, 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["mnist_wk_small_linf03", "cifar10_wk_small_l2_36px"])
def test_at_most_one_image_stands_that_the_reference_breaks(name: str) -> None:
    clf, images, labels, threat = reference(name, COUNT)
    robust, clean = (verdicts(name)[key][:COUNT] for key in ("robust", "clean"))
    broken = (clean & ~robust).nonzero()[:, 0]
    index = torch.cat([broken, robust.nonzero()[:ROBUST, 0], (~clean).nonzero()[:MISCLASSIFIED, 0]])
    recorded = {"clean": clean[index], "robust": robust[index]}
    result = autoattack(clf, images[index], labels[index], threat, progress=False)
    clean = [broken_by != "clean" for broken_by in result.broken_by]
    assert clean == recorded["clean"].tolist()
    assert (recorded["clean"] & ~recorded["robust"]).any()  # else there would be nothing to break
    assert (result.robust & ~recorded["robust"]).sum() <= 1
    assert (recorded["robust"] & ~result.robust).sum() <= 1
    assert all(work.unconfirmed == 0 for work in result.work.values())
