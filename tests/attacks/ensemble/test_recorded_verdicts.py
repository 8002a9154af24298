"""AutoAttack's verdicts against recorded ones of the reference implementation: 40 images in each norm.

All images of all reference networks: ``benchmarks/reference_verdicts.py``.
"""

from __future__ import annotations

import pytest
from tests.reference_models import reference, verdicts

from trilemma.attacks import autoattack

COUNT = 40


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["mnist_wk_small_linf03", "cifar10_wk_small_l2_36px"])
def test_at_most_one_image_stands_that_the_reference_breaks(name: str) -> None:
    clf, images, labels, threat = reference(name, COUNT)
    recorded = {key: verdicts(name)[key][:COUNT] for key in ("clean", "robust")}
    result = autoattack(clf, images, labels, threat, progress=False)
    clean = [broken_by != "clean" for broken_by in result.broken_by]
    assert clean == recorded["clean"].tolist()
    assert (recorded["clean"] & ~recorded["robust"]).any()  # else there would be nothing to break
    assert (result.robust & ~recorded["robust"]).sum() <= 1
    assert (recorded["robust"] & ~result.robust).sum() <= 1
    assert all(work.unconfirmed == 0 for work in result.work.values())
