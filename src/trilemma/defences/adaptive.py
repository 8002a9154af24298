"""PGD through a purifier: the attack for an evaluation of purification (Athalye et al. 2018, arXiv 1802.00420)."""

from __future__ import annotations

from itertools import count as counter
from typing import Any

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.attacks.arguments import AnyThreat, Length, attack_arguments
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.wrap import Images, Labels, Network
from trilemma.defences.purification import GRADIENTS, Purification, purified, unrolled
from trilemma.threat import Threat
from trilemma.units import choice, count, length
from trilemma.walks import objectives
from trilemma.walks.objectives import subset
from trilemma.walks.steps import ascend
from trilemma.walks.walk import Objective, input_gradient

# Random-number stream of the noise that an attack draws, apart from that of its start.
ATTACK_NOISE = 101


@torch.inference_mode(False)
def purified_pgd(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    purification: int | Purification,
    steps: int = 20,
    step_size: Length = None,
    generator: torch.Generator | None = None,
    *,
    norm: Any = None,
    gradient: str = "bpda",
) -> Tensor:
    """Adversarial images by PGD on the cross-entropy of the purified images, averaged over the purifier's noise.

    Every step follows the mean gradient of ``purification.draws`` purifications with new noise (expectation over
    transformations). ``"bpda"`` takes the gradient at the purified image and passes it back unchanged, as if the
    purifier were the identity. ``"unrolled"`` differentiates through all Langevin steps, exactly, for about three times
    the cost, and for memory that grows with the steps.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode.
        purification: the settings, or a number of steps.
        steps, step_size: of the attack, as of :func:`trilemma.attacks.pgd.pgd`.
        generator: source of the random starts and of the noise.
        gradient: ``"bpda"`` or ``"unrolled"``.

    Returns:
        The last iterates, ``[N, C, H, W]``, inside the ball and [0, 1]; not purified.

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: an invalid setting or threat, or a classifier without a gradient.
        NetworkError: for ``"unrolled"``, a network that cannot be differentiated twice.
    """
    given = attack_arguments("purified_pgd", clf, images, labels, threat, norm, generator)
    settings = Purification.of(purification)
    steps = count("purified_pgd", "steps", steps, 0)
    size = given.threat.epsilon / 4 if step_size is None else length("purified_pgd", "step_size", step_size)
    choice("purified_pgd", "gradient", gradient, GRADIENTS)
    if not len(given.images):
        return given.result(given.images)
    seeds = noise.image_seeds(len(given.images), generator, given.images.device)
    found = climb(given.clf, given.images, given.labels, given.threat, settings, gradient, seeds, steps, size)
    return given.result(found)


def climb(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    settings: Purification,
    gradient: str | None,
    seeds: Tensor,
    steps: int,
    size: float,
) -> Tensor:
    """The walk of :func:`purified_pgd` from a random start; the plain walk of PGD if ``gradient`` is ``None``.

    With equal seeds all walks begin at the same points, which are those of :func:`trilemma.attacks.pgd.pgd`.

    Args:
        seeds: int64 ``[N]``, one per image.
        size: length of a step, pixel units.
    """
    start = threat.random_start(images, noise.derive(seeds, 0))
    with inner_loop(clf, "eval"):
        objective = (
            objectives.cross_entropy(clf, labels)
            if gradient is None
            else _through_purifier(clf, labels, settings, gradient, noise.derive(seeds, ATTACK_NOISE))
        )
        return ascend(clf, start, images, threat, objective, steps, size)


def _through_purifier(
    clf: Classifier, labels: Tensor, settings: Purification, gradient: str, seeds: Tensor
) -> Objective:
    """The mean cross-entropy after purification, with new noise at every call."""
    calls = counter()

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        own_seeds = noise.derive(subset(seeds, index), next(calls))
        loss, logits, slope = purified_gradient(
            clf, images, subset(labels, index), settings, gradient, own_seeds
        )
        # A function whose gradient is the one that was computed, which is not that of its value.
        linear = ((images - images.detach()) * slope).flatten(1).sum(1)
        return loss + linear, logits

    return objective


def purified_gradient(
    clf: Classifier, images: Tensor, labels: Tensor, settings: Purification, gradient: str, seeds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy ``[N]``, logits ``[N, K]`` and gradient ``[N, C, H, W]`` over the draws of the purifier.

    Call it inside ``inner_loop``. The gradient of draw k has the noise of the seeds ``noise.derive(seeds, k)``; the
    mean is taken in the type of ``images``.

    Args:
        gradient: ``"bpda"`` or ``"unrolled"``.
        seeds: int64 ``[N]``, one per image.
    """
    draws = settings.draws if settings.random else 1
    once = _unrolled_gradient if gradient == "unrolled" else _identity_gradient
    total = once(clf, images, labels, settings, noise.derive(seeds, 0))
    for draw in range(1, draws):
        other = once(clf, images, labels, settings, noise.derive(seeds, draw))
        total = (total[0] + other[0], total[1] + other[1], total[2] + other[2])
    return total[0] / draws, total[1] / draws, total[2] / draws


def _identity_gradient(
    clf: Classifier, images: Tensor, labels: Tensor, settings: Purification, seeds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """BPDA: the gradient at the purified image, passed back by the identity."""
    points = purified(clf, images.detach(), settings, seeds).requires_grad_()
    return _loss_and_gradient(clf, points, points, labels)


def _unrolled_gradient(
    clf: Classifier, images: Tensor, labels: Tensor, settings: Purification, seeds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The exact gradient through all steps of the purifier."""
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        return _loss_and_gradient(clf, points, unrolled(clf, points, settings, seeds), labels)


def _loss_and_gradient(
    clf: Classifier, points: Tensor, classified: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        logits = clf.logits(classified)
        loss = energies.cross_entropy(logits, labels)
        gradient = input_gradient(loss, points)
    return loss.detach(), logits.detach(), gradient
