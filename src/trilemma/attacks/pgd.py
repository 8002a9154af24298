"""PGD (Madry et al. 2018) and its relatives: projected gradient steps that climb a loss inside the ball."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import Classifier, check_labels
from trilemma.classifier.contexts import Mode, inner_loop
from trilemma.errors import ConfigError, nearest
from trilemma.threat import Threat
from trilemma.walks import objectives
from trilemma.walks.steps import ascend
from trilemma.walks.walk import Callback, Objective

LOSSES = ("ce", "kl", "joint", "high-energy")
# The KL from the clean prediction is flat at the image itself, so its walk starts a little beside it (TRADES).
KL_START_NOISE = 0.001


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
    loss: str = "ce",
    gamma: float = 1.5,
    random_start: bool = True,
    mode: Mode = "eval",
    callback: Callback | None = None,
) -> Tensor:
    """The last iterate of each walk; with restarts, the worst of them per image.

    Worst means misclassified before classified correctly, then the higher loss (with ``target_labels``: the target
    reached, then the lower cross-entropy to it). Each image has its own random numbers, so the result does not
    depend on the batch.

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
        loss: the objective. ``"ce"``: cross-entropy; ``"kl"``: KL from the clean prediction, started at
            ``x + 0.001 n`` (Zhang et al. 2019); ``"joint"``: E(x, y) (arXiv 2108.09093); ``"high-energy"``:
            ``CE(x, y) + gamma E(x)`` (Beadini and Masi 2023).
        gamma: weight of the marginal energy in ``"high-energy"``.
        random_start: start uniformly in the ball; otherwise at the image.
        mode: BatchNorm and dropout mode of the forwards.
        callback: called after each step (see :func:`trilemma.walks.walk.walk`).

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1].

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: an unknown loss, a target with another loss than ``"ce"``, steps below 0 or restarts below 1.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    if steps < 0 or restarts < 1:
        raise ConfigError(
            f"pgd: steps={steps}, restarts={restarts}; steps must be at least 0 and restarts at least 1"
        )
    if loss not in LOSSES:
        raise ConfigError(
            f"pgd: loss={loss!r} is unknown.{nearest(loss, LOSSES)} Choose one of {', '.join(LOSSES)}"
        )
    if target_labels is not None:
        if loss != "ce":
            raise ConfigError(f"pgd: loss={loss!r} has no targets; use loss='ce' with target_labels")
        check_labels(target_labels, images, clf.num_classes, "target_labels")
    size = threat.epsilon / 4 if step_size is None else step_size
    # drawn only where they are used: without a generator they come from torch's global one
    seeds = noise.image_seeds(len(images), generator, images.device) if random_start or loss == "kl" else None

    with inner_loop(clf, mode):
        objective = _objective(clf, images, labels, target_labels, loss, gamma)
        worst, worst_score = images, torch.full((len(images),), -torch.inf, device=images.device)
        for restart in range(restarts):
            own = None if seeds is None else noise.derive(seeds, restart)
            start = _start(images, threat, own, loss) if own is not None else images
            reached = ascend(clf, start, images, threat, objective, steps, size, callback=callback)
            if restarts == 1:
                return reached
            score = _score(objective, reached, labels, target_labels)
            better = score > worst_score
            worst = torch.where(better.view(-1, *[1] * (images.dim() - 1)), reached, worst)
            worst_score = torch.where(better, score, worst_score)
    return worst


def fgsm(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    step_size: float | None = None,
    mode: Mode = "eval",
) -> Tensor:
    """FGSM (Goodfellow et al. 2015): one step of the radius up the cross-entropy, from the image itself.

    Args and errors: as of :func:`pgd`; ``step_size`` is the radius by default.
    """
    size = threat.epsilon if step_size is None else step_size
    return pgd(clf, images, labels, threat, 1, size, random_start=False, mode=mode)


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
    """High-energy PGD (Beadini and Masi 2023, arXiv 2304.04033): steps up ``CE(x*, y) + gamma E(x*)``.

    An attack on the cross-entropy alone lowers E(x*) far below that of clean images, so a detector of energies detects
    it. With ``CE = E(x, y) - E(x)`` this one climbs ``E(x*, y) + (gamma - 1) E(x*)``; at ``gamma`` 0 it is :func:`pgd`.

    Args and errors: as of :func:`pgd`; ``step_size`` is radius / 8 by default, which is 1/255 at 8/255.
    """
    size = threat.epsilon / 8 if step_size is None else step_size
    return pgd(
        clf, images, labels, threat, steps, size, generator=generator,
        loss="high-energy", gamma=gamma, mode=mode, callback=callback,
    )  # fmt: skip


def pgd_targeted(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    steps: int = 20,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """PGD down ``CE(x*, t)``, ``t`` drawn per image among the classes other than its own; as of :func:`pgd`."""
    draws = noise.uniform(noise.image_seeds(len(images), generator, images.device), 0, (1,))[:, 0]
    targets = (labels + 1 + (draws * (clf.num_classes - 1)).long()) % clf.num_classes
    return pgd(clf, images, labels, threat, steps, target_labels=targets, generator=generator)


def _objective(
    clf: Classifier, images: Tensor, labels: Tensor, target_labels: Tensor | None, loss: str, gamma: float
) -> Objective:
    if target_labels is not None:
        return objectives.targeted_cross_entropy(clf, target_labels)
    if loss == "kl":
        with torch.no_grad():
            return objectives.divergence(clf, clf.logits(images))
    if loss == "joint":
        return objectives.joint_energy(clf, labels)
    if loss == "high-energy":
        return objectives.high_energy(clf, labels, gamma)
    return objectives.cross_entropy(clf, labels)


def _start(images: Tensor, threat: Threat, seeds: Tensor, loss: str) -> Tensor:
    if loss == "kl":
        return threat.project(images + KL_START_NOISE * noise.normal(seeds, 0, images.shape[1:]), images)
    return threat.random_start(images, seeds)


@torch.no_grad()
def _score(objective: Objective, images: Tensor, labels: Tensor, target_labels: Tensor | None) -> Tensor:
    """Orders the ends of several walks; a bounded loss keeps every success above every failure."""
    loss, logits = objective(images, torch.arange(len(images), device=images.device))
    predicted = logits.argmax(1)
    success = predicted != labels if target_labels is None else predicted == target_labels
    return success.double() * 4 + loss.double().atan()
