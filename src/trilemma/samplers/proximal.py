"""The noiseless clamped step of the JEM++ family (arXiv 2109.09032)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trilemma.classifier import Classifier
from trilemma.samplers.langevin import langevin
from trilemma.walk import Objective


def proximal(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = 0.25,
    noise_std: float = 0.0,
    clamp: float | None = 2.0,
    seeds: Tensor | None = None,
    **walk_options: Any,
) -> Tensor:
    """``x <- clip(x - step_size clamp(grad U(x), +-clamp), 0, 1)``.

    The defaults are JEM++'s on [0, 1] images: a step of 1 and a clamp of 1 on [-1, 1]. Its release
    nests a second loop around the first layer's gradient; that loop repeats the same affine gradient,
    so ten outer by five inner steps of 0.2 are ten of these.
    """
    return langevin(clf, images, energy, steps, step_size, noise_std, clamp, seeds, **walk_options)
