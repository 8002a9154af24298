"""Langevin dynamics (SGLD), as in JEM (arXiv 1912.03263)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trilemma.classifier import Classifier
from trilemma.samplers.descent import descend
from trilemma.walk import Objective, Walkers


def langevin(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = 0.25,
    noise_std: float = 0.005,
    clamp: float | None = None,
    seeds: Tensor | None = None,
    **walk_options: Any,
) -> Tensor:
    """``x <- clip(x - step_size grad U(x) + noise_std n)``, ``n ~ N(0, I)``.

    The defaults are JEM's on [0, 1] images: a step of 1 and noise of 0.01 on [-1, 1].

    Args:
        clf: inside :func:`trilemma.contexts.inner_loop`.
        images: starts, ``[N, C, H, W]``.
        energy: what is descended (see :mod:`trilemma.attacks.objectives`).
        steps: number of steps.
        step_size: multiplies the gradient (half the papers' s).
        noise_std: pixel units per step; 0 needs no seeds.
        clamp: bound on each entry of the gradient.
        seeds: int64 ``[N]``, one per image.
        walk_options: ``clean``, ``budget``, ``clip``, ``stop``, ``callback`` of the shared walk.
    """

    def step(walkers: Walkers, gradient: Tensor) -> Tensor:
        if clamp is not None:
            gradient = gradient.clamp(-clamp, clamp)
        moved = walkers.images - step_size * gradient
        return moved + noise_std * walkers.normal() if noise_std else moved

    return descend(clf, images, energy, step, steps, seeds=seeds, **walk_options)
