"""PGD (Madry et al. 2018) and its variants: projected gradient steps that maximise a loss inside the ball."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.arguments import AnyThreat, Length, attack_arguments
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import Mode, inner_loop
from trilemma.classifier.fast_copy import quick_gradients
from trilemma.classifier.wrap import Images, Labels, Network, as_labels
from trilemma.errors import ConfigError
from trilemma.memory import freed_memory_kept
from trilemma.threat import Threat
from trilemma.units import choice, count, length, number
from trilemma.walks import objectives
from trilemma.walks.steps import ascend
from trilemma.walks.walk import Callback, Objective

LOSSES = ("ce", "kl", "joint", "high-energy")
# The KL from the clean prediction has zero gradient at the clean image, so the walk starts near it (TRADES).
KL_START_NOISE = 0.001


@torch.inference_mode(False)
def pgd(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    steps: int = 20,
    step_size: Length = None,
    restarts: int = 1,
    target_labels: Labels | None = None,
    generator: torch.Generator | None = None,
    *,
    norm: Any = None,
    loss: str = "ce",
    gamma: float = 1.5,
    random_start: bool = True,
    mode: Mode = "eval",
    callback: Callback | None = None,
) -> Tensor:
    """Adversarial images by projected gradient steps: the last iterate, with restarts the worst one per image.

    The worst is a misclassified one if there is any, and among equals the one of highest loss (with ``target_labels``:
    one that is classified as its target, and the lowest cross-entropy to the target). Each image has its own random
    numbers, so the result does not depend on the batch.

    Args:
        clf: the classifier, or a network or function from images in [0, 1] to logits; its state is restored.
        images: ``[N, C, H, W]`` in [0, 1], a float32 or float64 tensor or array of NumPy, on any device.
        labels: the true classes, int64 ``[N]`` or a list or array of whole numbers.
        threat: norm and radius, or a radius such as ``8 / 255`` or ``"8/255"``; ``None`` for that of the classifier.
        steps: gradient steps per restart.
        step_size: in pixel units, such as 0.01 or ``"2/255"``; radius / 4 by default.
        restarts: number of independent random starts.
        target_labels: classes ``[N]``; if given, the attack minimises the cross-entropy to these classes instead.
        generator: source of the random starts.
        norm: norm of ``threat`` if that is a radius; ``"linf"`` by default.
        loss: the objective. ``"ce"``: cross-entropy; ``"kl"``: KL from the clean prediction, starting at
            ``x + 0.001 n`` (Zhang et al. 2019); ``"joint"``: E(x, y) (arXiv 2108.09093); ``"high-energy"``:
            ``CE(x, y) + gamma E(x)`` (Beadini and Masi 2023).
        gamma: weight of the marginal energy in ``"high-energy"``.
        random_start: start at a uniform point of the ball; otherwise at the clean image.
        mode: BatchNorm and dropout mode of the forward passes.
        callback: called after each step (see :func:`trilemma.walks.walk.walk`).

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1], without a graph, of the type and on the device
        of ``images``.

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: an unknown loss or mode, targets with a loss other than ``"ce"``, an invalid threat, or a number of
            a wrong type or range: steps below 0, restarts below 1, a step size that is not above 0.
        NetworkError: the network raises an exception or does not return logits.
    """
    given = attack_arguments("pgd", clf, images, labels, threat, norm, generator)
    clf, images, labels, threat = given.clf, given.images, given.labels, given.threat
    steps, restarts = count("pgd", "steps", steps, 0), count("pgd", "restarts", restarts)
    size = threat.epsilon / 4 if step_size is None else length("pgd", "step_size", step_size)
    gamma = number("pgd", "gamma", gamma)
    choice("pgd", "loss", loss, LOSSES)
    choice("pgd", "mode", mode, get_args(Mode))
    if target_labels is not None:
        if loss != "ce":
            raise ConfigError(f"pgd: loss={loss!r} has no targets; use loss='ce' with target_labels")
        target_labels = as_labels(target_labels, images, clf.num_classes, "target_labels")
    if not len(images):
        return given.result(images)
    # Drawn only if used, as without a generator they come from torch's global one.
    seeds = noise.image_seeds(len(images), generator, images.device) if random_start or loss == "kl" else None

    gradients = steps * restarts * len(images)
    with inner_loop(clf, mode), freed_memory_kept(images.device, gradients):
        objective = _objective(clf, images, labels, target_labels, loss, gamma)
        # In eval mode the gradients come from a faster copy; the images are judged by the classifier itself.
        quick = quick_gradients(clf, images, gradients) if mode == "eval" else clf
        climbed = objective if quick is clf else _objective(quick, images, labels, target_labels, loss, gamma)
        worst, worst_score = images, torch.full((len(images),), -torch.inf, device=images.device)
        for restart in range(restarts):
            start_seeds = None if seeds is None else noise.derive(seeds, restart)
            start = images if start_seeds is None else _start(images, threat, start_seeds, loss)
            adversarial = ascend(quick, start, images, threat, climbed, steps, size, callback=callback)
            if restarts == 1:
                return given.result(adversarial)
            score = _score(objective, adversarial, labels, target_labels)
            better = score > worst_score
            worst = torch.where(better.view(-1, *[1] * (images.dim() - 1)), adversarial, worst)
            worst_score = torch.where(better, score, worst_score)
    return given.result(worst)


def fgsm(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    *,
    norm: Any = None,
    step_size: Length = None,
    mode: Mode = "eval",
) -> Tensor:
    """Adversarial images by FGSM (Goodfellow et al. 2015): one gradient step on the cross-entropy from the clean image.

    Arguments and errors as in :func:`pgd`; ``step_size`` is the radius by default.
    """
    given = attack_arguments("fgsm", clf, images, labels, threat, norm)
    size = given.threat.epsilon if step_size is None else step_size
    return pgd(given.clf, images, labels, given.threat, 1, size, random_start=False, mode=mode)


def he_pgd(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    steps: int = 20,
    step_size: Length = None,
    gamma: float = 1.5,
    generator: torch.Generator | None = None,
    *,
    norm: Any = None,
    mode: Mode = "eval",
    callback: Callback | None = None,
) -> Tensor:
    """Adversarial images by high-energy PGD, which maximises ``CE(x*, y) + gamma E(x*)``.

    Beadini and Masi 2023, arXiv 2304.04033. An attack on the cross-entropy alone lowers E(x*) far below the energy of
    clean images, so that a detector of low energies detects it. As ``CE = E(x, y) - E(x)``, this attack maximises
    ``E(x*, y) + (gamma - 1) E(x*)``; with ``gamma`` 0 it is :func:`pgd`.

    Arguments and errors as in :func:`pgd`; ``step_size`` is radius / 8 by default, which is 1/255 at 8/255.
    """
    given = attack_arguments("he_pgd", clf, images, labels, threat, norm, generator)
    size = given.threat.epsilon / 8 if step_size is None else step_size
    return pgd(
        given.clf, images, labels, given.threat, steps, size, generator=generator,
        loss="high-energy", gamma=gamma, mode=mode, callback=callback,
    )  # fmt: skip


def pgd_targeted(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    steps: int = 20,
    *,
    norm: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images by PGD that minimises ``CE(x*, t)`` for a random wrong class ``t``; see :func:`pgd`."""
    given = attack_arguments("pgd", clf, images, labels, threat, norm, generator)
    classes = given.clf.num_classes
    seeds = noise.image_seeds(len(given.images), generator, given.images.device)
    draws = noise.uniform(seeds, 0, (1,))[:, 0]
    targets = (given.labels + 1 + (draws * (classes - 1)).long()) % classes
    return pgd(given.clf, images, labels, given.threat, steps, target_labels=targets, generator=generator)


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
    """A score to compare restarts, float64 ``[N]``: every success above every failure, then by loss."""
    loss, logits = objective(images, torch.arange(len(images), device=images.device))
    predicted = logits.argmax(1)
    success = predicted != labels if target_labels is None else predicted == target_labels
    return success.double() * 4 + loss.double().atan()
