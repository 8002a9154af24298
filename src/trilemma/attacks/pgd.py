"""PGD: projected gradient steps that climb the cross-entropy (Madry et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.attacks import objectives
from trilemma.attacks.ball import ascend, check_labels
from trilemma.classifier import Classifier
from trilemma.contexts import Mode, inner_loop
from trilemma.errors import ConfigError
from trilemma.threat import Threat
from trilemma.walk import Callback


def pgd(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    target_labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    random_start: bool = True,
    mode: Mode = "eval",
    callback: Callback | None = None,
) -> Tensor:
    """The last iterate of each walk; with restarts, the worst of them per image.

    Worst means wrong before right, then (untargeted) the higher cross-entropy, or (targeted) the lower one
    to the target. Each image has its own random numbers, so the result does not depend on the batch.

    Args:
        clf: the classifier; left exactly as it was.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        steps: gradient steps per restart.
        step_size: pixel units per step; radius / 4 by default.
        restarts: independent random starts.
        target_labels: int64 ``[N]``; when given, each image is driven to its target class.
        generator: source of the random starts.
        random_start: start uniformly in the ball; otherwise at the image.
        mode: BatchNorm and dropout mode of the forwards.
        callback: called after each step (see :func:`trilemma.walk.walk`).

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1].

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: steps below 0 or restarts below 1.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    if steps < 0 or restarts < 1:
        raise ConfigError(
            f"pgd: steps={steps}, restarts={restarts}; steps must be at least 0 and restarts at least 1"
        )
    if target_labels is None:
        objective = objectives.cross_entropy(clf, labels)
    else:
        check_labels(target_labels, images, clf.num_classes, "target_labels")
        objective = objectives.targeted_cross_entropy(clf, target_labels)
    size = threat.epsilon / 4 if step_size is None else step_size
    seeds = noise.image_seeds(len(images), generator, images.device)

    with inner_loop(clf, mode):
        worst, worst_score = images, torch.full((len(images),), -torch.inf, device=images.device)
        for restart in range(restarts):
            own = noise.derive(seeds, restart)
            start = threat.random_start(images, own) if random_start else images
            reached = ascend(clf, start, images, threat, objective, steps, size, callback=callback)
            if restarts == 1:
                return reached
            score = _score(clf, reached, labels, target_labels)
            better = score > worst_score
            worst = torch.where(better.view(-1, *[1] * (images.dim() - 1)), reached, worst)
            worst_score = torch.where(better, score, worst_score)
    return worst


@torch.no_grad()
def _score(clf: Classifier, images: Tensor, labels: Tensor, target_labels: Tensor | None) -> Tensor:
    """Orders the ends of several walks; a bounded loss keeps every success above every failure."""
    logits = clf.logits(images)
    if target_labels is None:
        success, loss = logits.argmax(1) != labels, energies.cross_entropy(logits, labels)
    else:
        success, loss = logits.argmax(1) == target_labels, -energies.cross_entropy(logits, target_labels)
    return success.double() * 4 + loss.double().atan()
