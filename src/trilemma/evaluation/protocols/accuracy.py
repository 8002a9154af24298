"""The protocols ``clean``, ``pgd-20``, ``pgd-50-10`` and ``attack:NAME``: accuracy without and under one attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks import pgd
from trilemma.attacks.preset import attack_target, count_outside, run_preset, settings_of
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.correctness import correct_in_batches, is_correct
from trilemma.config.presets import DIAGNOSE, find_preset
from trilemma.data.image_set import as_float
from trilemma.evaluation.protocol import Protocol, Request, Verdicts, protocol
from trilemma.evaluation.protocols.purified import purified_clean, purified_pgd
from trilemma.threat import Threat
from trilemma.workers import Worker, Workers, shared_out


@protocol(version=1, needs_threat=False, purified=purified_clean)
def clean(request: Request) -> Verdicts:
    """Accuracy on the unperturbed images."""
    return Verdicts(
        correct_in_batches(
            request.clf,
            request.images,
            request.labels,
            request.batch_size,
            request.advance,
            request.workers,
        )
    )


@protocol(version=1, needs_threat=True, purified=purified_pgd("pgd-20", steps=20, restarts=1))
def pgd_20(request: Request) -> Verdicts:
    """Accuracy under PGD on the cross-entropy: 20 steps of a quarter of the radius, one random start.

    An image that is misclassified without any attack counts as broken and is not attacked.
    """
    return _pgd("pgd-20", request, steps=20, restarts=1)


@protocol(version=1, needs_threat=True, purified=purified_pgd("pgd-50-10", steps=50, restarts=10))
def pgd_50_10(request: Request) -> Verdicts:
    """Accuracy under PGD on the cross-entropy: 50 steps of a quarter of the radius, the worst of 10 random starts.

    Each start attacks only the images that the earlier ones did not break. An image that is misclassified without any
    attack counts as broken.
    """
    return _pgd("pgd-50-10", request, steps=50, restarts=10)


def attack(name: str) -> Protocol:
    """The protocol ``attack:NAME``: accuracy under a registered attack, or a preset of ``diagnose``, with its settings.

    Images are attacked once; an image that is misclassified without any attack counts as broken and is not attacked.

    Raises:
        UnknownNameError: unknown attack.
        ConfigError: during the measurement, as of :func:`trilemma.attacks.preset.run_preset`.
    """
    preset = find_preset(DIAGNOSE, name, "attack")

    def measure(request: Request) -> Verdicts:
        # The random numbers that a registered attack draws are not known, so its batches come one after the other.
        alone = replace(request, workers=None)
        verdicts = _attacked(f"attack:{name}", alone, partial(run_preset, preset), restarts=1)
        function = attack_target(preset)
        return Verdicts(
            verdicts.correct,
            {**verdicts.facts, "function": function, "settings": settings_of(preset)},
            adversarial=verdicts.adversarial,
        )

    return Protocol(version=1, needs_threat=True, measure=measure)


def _pgd(name: str, request: Request, steps: int, restarts: int) -> Verdicts:
    """Verdicts under PGD with steps of a quarter of the radius."""

    size = request.required_threat.epsilon / 4
    return _attacked(name, request, partial(_pgd_steps, steps=steps, size=size), restarts)


def _pgd_steps(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    generator: torch.Generator,
    steps: int,
    size: float,
) -> Tensor:
    return pgd(clf, images, labels, threat, steps=steps, step_size=size, generator=generator)


# Classifier, images, labels, threat and generator to adversarial images.
Attack = Callable[[Classifier, Tensor, Tensor, Threat, torch.Generator], Tensor]


def _attacked(name: str, request: Request, attack: Attack, restarts: int) -> Verdicts:
    """Verdicts after ``restarts`` runs of ``attack``, each on the images that are still classified correctly.

    Each restart runs over all images before the next one begins, so that the random numbers of an image do not depend
    on the batch size. With several workers, the attack has to draw one seed per image, as PGD does: the seeds of
    earlier images are drawn for each batch again.

    Raises:
        RuntimeError: adversarial images outside the ball or [0, 1].
    """
    workers = request.workers or Workers(request.clf)
    clf, images, labels, threat = request.clf, request.images, request.labels, request.required_threat
    correct = correct_in_batches(clf, images, labels, request.batch_size, workers=workers)
    remaining = correct.nonzero().squeeze(1)
    facts: dict[str, Any] = {"attacked": len(remaining)}
    request.advance(len(labels) - len(remaining))
    generator = torch.Generator().manual_seed(request.seed)
    kept = as_float(images.cpu()).float().clone() if request.keep_adversarial else None
    robust_counts, drawn = [], 0
    for restart in range(restarts):
        batches = shared_out(remaining, request.batch_size, workers.count)
        first = accumulate((len(index) for index in batches), initial=drawn)
        parts = (
            (
                name,
                attack,
                threat,
                images[index],
                labels[index],
                generator if workers.count == 1 else (request.seed, before),
                kept is not None,
            )
            for index, before in zip(batches, first, strict=False)
        )
        for position, (verdicts, adversarial) in workers.map(_attacked_part, parts):
            index = batches[position]
            correct[index] = verdicts
            if kept is not None:
                kept[index] = adversarial
            request.advance(len(index) if restart == restarts - 1 else int((~verdicts).sum()))
        drawn += len(remaining)
        remaining = correct.nonzero().squeeze(1)
        robust_counts.append(len(remaining))
    return Verdicts(
        correct, facts if restarts == 1 else facts | {"standing": robust_counts}, adversarial=kept
    )


def _attacked_part(
    worker: Worker,
    name: str,
    attack: Attack,
    threat: Threat,
    images: Tensor,
    labels: Tensor,
    source: torch.Generator | tuple[int, int],
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attacks one batch.

    Args:
        worker, name, attack, threat: as in :func:`_attacked`.
        images, labels: of the batch, as stored.
        source: the generator of the attack; or its seed, and the number of seeds of earlier images.
        keep: whether to return the images.

    Returns:
        Bool ``[n]``, whether each image is still classified correctly, and the adversarial images or ``None``.
    """
    clf = worker.clf
    if isinstance(source, torch.Generator):
        generator = source
    else:
        seed, before = source
        generator = torch.Generator().manual_seed(seed)
        noise.image_seeds(before, generator)
    batch, true_labels = as_float(images.to(clf.device)), labels.to(clf.device)
    adversarial = attack(clf, batch, true_labels, threat, generator)
    if outside := count_outside(threat, adversarial, batch):
        raise RuntimeError(f"{name}: {outside} adversarial images lie outside {threat} or [0, 1]; a bug")
    verdicts = is_correct(clf, adversarial, true_labels).cpu()
    return verdicts, adversarial.float().cpu() if keep else None
