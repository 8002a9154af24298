"""Gradient steps with momentum and little noise: WEAT's generator (pixel units)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.classifier import Classifier
from trilemma.samplers.descent import descend
from trilemma.walk import Objective, Walkers


def momentum(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = 0.0125,
    noise_std: float = 0.001,
    clamp: float | None = None,
    seeds: Tensor | None = None,
    zeta: float = 0.8,
    **walk_options: Any,
) -> Tensor:
    """``v <- zeta v - step_size grad U(x)``; ``x <- clip(x + v + noise_std n)``.

    Args:
        zeta: share of the velocity kept per step. The others as in :func:`trilemma.samplers.langevin.langevin`.
    """

    def step(walkers: Walkers, gradient: Tensor) -> Tensor:
        if clamp is not None:
            gradient = gradient.clamp(-clamp, clamp)
        velocity = walkers.state.get("velocity")
        velocity = (
            zeta * (torch.zeros_like(gradient) if velocity is None else velocity) - step_size * gradient
        )
        walkers.state["velocity"] = velocity
        moved = walkers.images + velocity
        return moved + noise_std * walkers.normal() if noise_std else moved

    return descend(clf, images, energy, step, steps, seeds=seeds, **walk_options)
