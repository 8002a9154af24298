"""The samplers: one function each, from starting images down an energy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.threat import image_norm
from trilemma.walks.steps import descend
from trilemma.walks.walk import Objective, Walkers


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
        clf: inside :func:`trilemma.classifier.contexts.inner_loop`.
        images: starts, ``[N, C, H, W]``.
        energy: what is descended (see :mod:`trilemma.walks.objectives`).
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
        zeta: share of the velocity kept per step. The others as in :func:`trilemma.samplers.samplers.langevin`.
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
            :func:`trilemma.samplers.samplers.langevin`.
    """

    def step(walkers: Walkers, gradient: Tensor) -> Tensor:
        if clamp is not None:
            gradient = gradient.clamp(-clamp, clamp)
        moved = walkers.images - step_size * gradient / image_norm(gradient).clamp_min(1e-12)
        return moved + noise_std * walkers.normal() if noise_std else moved

    return descend(clf, images, energy, step, steps, seeds=seeds, **walk_options)
