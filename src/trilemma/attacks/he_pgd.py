"""High-energy PGD: raises the loss without lowering the marginal energy (Beadini and Masi 2023, arXiv 2304.04033)."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks import objectives
from trilemma.attacks.ball import ascend, check_labels
from trilemma.classifier import Classifier
from trilemma.contexts import Mode, inner_loop
from trilemma.errors import ConfigError
from trilemma.threat import Threat
from trilemma.walk import Callback


def he_pgd(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    steps: int = 20,
    step_size: float | None = None,
    gamma: float = 1.5,
    generator: torch.Generator | None = None,
    *,
    mode: Mode = "eval",
    callback: Callback | None = None,
) -> Tensor:
    """The last iterate of steps up ``CE(x*, y) + gamma E(x*)`` from a uniform start in the ball.

    An attack on the cross-entropy alone lowers E(x*) far below that of clean images, so a detector of energies
    sees it. This one keeps it up: with ``CE = E(x, y) - E(x)`` it climbs ``E(x*, y) + (gamma - 1) E(x*)``. At
    ``gamma`` 0 it is :func:`trilemma.attacks.pgd.pgd` of the same steps and step size.

    Args:
        clf: the classifier; left exactly as it was.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        steps: gradient steps.
        step_size: pixel units per step; radius / 8 by default, which is 1/255 at 8/255.
        gamma: weight of the marginal energy.
        generator: source of the random starts.
        mode: BatchNorm and dropout mode of the forwards.
        callback: called after each step (see :func:`trilemma.walk.walk`).

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1].

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: steps below 0.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    if steps < 0:
        raise ConfigError(f"he-pgd: steps={steps}; must be at least 0")
    size = threat.epsilon / 8 if step_size is None else step_size
    seeds = noise.derive(noise.image_seeds(len(images), generator, images.device), 0)  # the starts of pgd
    with inner_loop(clf, mode):
        start = threat.random_start(images, seeds)
        objective = objectives.high_energy(clf, labels, gamma)
        return ascend(clf, start, images, threat, objective, steps, size, callback=callback)
