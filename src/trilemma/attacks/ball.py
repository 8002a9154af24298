"""Steepest ascent inside a threat's ball: the walk that PGD, TRADES and the energy attacks share."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.attacks.objectives import rows
from trilemma.classifier import Classifier
from trilemma.errors import ImageError
from trilemma.threat import Threat
from trilemma.walk import Callback, Objective, Walkers, walk


def ascend(
    clf: Classifier,
    start: Tensor,
    clean: Tensor,
    threat: Threat,
    objective: Objective,
    steps: int,
    step_size: float,
    *,
    project: bool = True,
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """``x <- project(x + step_size * ascent(gradient))``, ``steps`` times.

    Args:
        clf: inside :func:`trilemma.contexts.inner_loop`.
        start: where the walk begins, ``[N, C, H, W]``.
        clean: the centres of the balls, ``[N, C, H, W]``.
        step_size: pixel units; the sign (linf) or the normalised gradient (l2) is multiplied by it.
        project: keep to the ball and the box; without it only to the box [0, 1].
        clip: without it and without ``project``, not even to the box.
    """

    def step(walkers: Walkers, gradient: Tensor) -> Tensor:
        return walkers.images + step_size * threat.ascent(gradient)

    def constraint(images: Tensor, index: Tensor) -> Tensor:
        if project:
            return threat.project(images, rows(clean, index))
        return images.clamp(0.0, 1.0) if clip else images

    return walk(clf, start, objective, step, constraint, steps, callback=callback)


def check_labels(labels: Tensor, images: Tensor, num_classes: int, name: str = "labels") -> None:
    """Refuses labels that do not fit the images or the classes.

    Raises:
        ImageError: naming what was given and what is wanted.
    """
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ImageError(
            f"{name}: {labels.dtype} of shape {list(labels.shape)} given for {len(images)} images; "
            f"pass an int64 tensor of shape [{len(images)}]"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ImageError(
            f"{name}: values {int(labels.min())}..{int(labels.max())}, but classes are 0..{num_classes - 1}"
        )
