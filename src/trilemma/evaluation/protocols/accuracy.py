"""The protocols ``clean``, ``pgd-20``, ``pgd-50-10`` and ``attack:NAME``: accuracy without and under one attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trilemma.attacks import pgd
from trilemma.attacks.preset import attack_target, count_outside, run_preset, settings_of
from trilemma.classifier.correctness import correct_in_batches, is_correct
from trilemma.config.presets import DIAGNOSE, find_preset
from trilemma.data.image_set import as_float
from trilemma.evaluation.protocol import Protocol, Request, Verdicts, protocol
from trilemma.evaluation.protocols.purified import purified_clean, purified_pgd


@protocol(version=1, needs_threat=False, purified=purified_clean)
def clean(request: Request) -> Verdicts:
    """Accuracy on the unperturbed images."""
    return Verdicts(
        correct_in_batches(request.clf, request.images, request.labels, request.batch_size, request.advance)
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
        def run(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            return run_preset(preset, request.clf, images, labels, request.required_threat, generator)

        verdicts = _attacked(f"attack:{name}", request, run, restarts=1)
        function = attack_target(preset)
        return Verdicts(
            verdicts.correct,
            {**verdicts.facts, "function": function, "settings": settings_of(preset)},
            adversarial=verdicts.adversarial,
        )

    return Protocol(version=1, needs_threat=True, measure=measure)


def _pgd(name: str, request: Request, steps: int, restarts: int) -> Verdicts:
    """Verdicts under PGD with steps of a quarter of the radius."""

    def run(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        threat = request.required_threat
        size = threat.epsilon / 4
        return pgd(request.clf, images, labels, threat, steps=steps, step_size=size, generator=generator)

    return _attacked(name, request, run, restarts)


def _attacked(
    name: str, request: Request, attack: Callable[[Tensor, Tensor, torch.Generator], Tensor], restarts: int
) -> Verdicts:
    """Verdicts after ``restarts`` runs of ``attack``, each on the images that are still classified correctly.

    Each restart runs over all images before the next one begins, so that the random numbers of an image do not depend
    on the batch size.

    Raises:
        RuntimeError: adversarial images outside the ball or [0, 1].
    """
    clf, images, labels, threat = request.clf, request.images, request.labels, request.required_threat
    correct = correct_in_batches(clf, images, labels, request.batch_size)
    remaining = correct.nonzero().squeeze(1)
    facts: dict[str, Any] = {"attacked": len(remaining)}
    request.advance(len(labels) - len(remaining))
    generator = torch.Generator().manual_seed(request.seed)
    kept = as_float(images.cpu()).float().clone() if request.keep_adversarial else None
    robust_counts = []
    for restart in range(restarts):
        for index in remaining.split(request.batch_size) if len(remaining) else ():
            batch, true_labels = as_float(images[index].to(clf.device)), labels[index].to(clf.device)
            adversarial = attack(batch, true_labels, generator)
            if outside := count_outside(threat, adversarial, batch):
                raise RuntimeError(
                    f"{name}: {outside} adversarial images lie outside {threat} or [0, 1]; a bug"
                )
            correct[index] = is_correct(clf, adversarial, true_labels).cpu()
            if kept is not None:
                kept[index] = adversarial.float().cpu()
            request.advance(len(index) if restart == restarts - 1 else int((~correct[index]).sum()))
        remaining = correct.nonzero().squeeze(1)
        robust_counts.append(len(remaining))
    return Verdicts(
        correct, facts if restarts == 1 else facts | {"standing": robust_counts}, adversarial=kept
    )
