"""Gradient steps of a given L2 length: the walk of DAT (arXiv 2510.13872) and of the robustness library."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trilemma.classifier import Classifier
from trilemma.samplers.descent import descend
from trilemma.threat import image_norm
from trilemma.walk import Objective, Walkers


def normalised(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = 0.2,
    noise_std: float = 0.0,
    clamp: float | None = None,
    seeds: Tensor | None = None,
    **walk_options: Any,
) -> Tensor:
    """``x <- clip(x - step_size grad U(x) / ||grad U(x)||_2)``, the norm taken over one image.

    Args:
        step_size: L2 length of a step, pixel units. 0.2 for 32 to 35 steps draws DAT's images; its training walks
            by 0.1.
        noise_std: pixel units per step; 0 needs no seeds.
        clamp: bound on each entry of the gradient, before its length is made 1. The others as in
            :func:`trilemma.samplers.langevin.langevin`.
    """

    def step(walkers: Walkers, gradient: Tensor) -> Tensor:
        if clamp is not None:
            gradient = gradient.clamp(-clamp, clamp)
        moved = walkers.images - step_size * gradient / image_norm(gradient).clamp_min(1e-12)
        return moved + noise_std * walkers.normal() if noise_std else moved

    return descend(clf, images, energy, step, steps, seeds=seeds, **walk_options)
