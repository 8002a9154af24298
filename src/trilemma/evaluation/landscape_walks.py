"""Attacks of the energy landscape that are no more than an objective: targeted PGD, TRADES' KL, E(x, y)."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks import apgd, objectives, pgd
from trilemma.attacks.ball import ascend
from trilemma.classifier import Classifier
from trilemma.contexts import inner_loop
from trilemma.evaluation.landscape_attacks import CLASSES_OF_TARGETED_DLR
from trilemma.threat import Threat

# TRADES: the KL is flat at the image itself, so the walk starts a little beside it.
START_NOISE = 0.001


def pgd_targeted(
    clf: Classifier, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator, steps: int
) -> Tensor:
    """PGD down ``CE(x*, t)``, ``t`` drawn per image among the classes other than its own."""
    draws = noise.uniform(noise.image_seeds(len(images), generator, images.device), 0, (1,))[:, 0]
    targets = (labels + 1 + (draws * (clf.num_classes - 1)).long()) % clf.num_classes
    return pgd(clf, images, labels, threat, steps, target_labels=targets, generator=generator)


def apgd_targeted(
    clf: Classifier, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator, steps: int,
    targets: int, early_stop: bool,
) -> Tensor:  # fmt: skip
    """Auto-PGD on the targeted DLR, or on its numerator ``z_t - z_y`` with fewer than 4 classes."""
    loss = "dlr-targeted" if clf.num_classes >= CLASSES_OF_TARGETED_DLR else "margin-targeted"
    return apgd(clf, images, labels, threat, loss, steps, targets, generator, early_stop=early_stop)


def trades_kl(
    clf: Classifier, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator, steps: int
) -> Tensor:
    """Steps of a quarter of the radius up ``KL(f(x) || f(x*))`` from ``x + 0.001 n`` (Zhang et al. 2019)."""
    seeds = noise.image_seeds(len(images), generator, images.device)
    with inner_loop(clf, "eval"):
        with torch.no_grad():
            objective = objectives.divergence(clf, clf.logits(images))
        start = threat.project(images + START_NOISE * noise.normal(seeds, 0, images.shape[1:]), images)
        return ascend(clf, start, images, threat, objective, steps, threat.epsilon / 4)


def joint_energy(
    clf: Classifier, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator, steps: int
) -> Tensor:
    """Steps of a quarter of the radius up ``E(x*, y)`` from a uniform start in the ball."""
    seeds = noise.image_seeds(len(images), generator, images.device)
    with inner_loop(clf, "eval"):
        start = threat.random_start(images, seeds)
        objective = objectives.joint_energy(clf, labels)
        return ascend(clf, start, images, threat, objective, steps, threat.epsilon / 4)
