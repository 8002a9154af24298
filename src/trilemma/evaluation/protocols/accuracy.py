"""The quick protocols: ``clean``, ``pgd-20``, ``pgd-50-10`` and ``attack:NAME``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trilemma.attacks import pgd
from trilemma.attacks.preset import run_preset
from trilemma.classifier.correctness import correct_in_batches, is_correct
from trilemma.config.presets import DIAGNOSE, find_preset
from trilemma.config.registry import ATTACKS
from trilemma.data.image_set import as_float
from trilemma.errors import ConfigError
from trilemma.evaluation.protocol import Protocol, Request, Verdicts, protocol

# Rounding of clean + delta in float32, summed over an image; an attack's mistake is far larger.
BALL_TOLERANCE = 1e-5


@protocol(version=1, needs_threat=False)
def clean(request: Request) -> Verdicts:
    """Accuracy on the images as they are."""
    return Verdicts(
        correct_in_batches(request.clf, request.images, request.labels, request.batch_size, request.advance)
    )


@protocol(version=1, needs_threat=True)
def pgd_20(request: Request) -> Verdicts:
    """Cross-entropy, 20 steps of a quarter of the radius, one random start.

    An image that is misclassified without any attack counts as broken and is not attacked.
    """
    return _pgd("pgd-20", request, steps=20, restarts=1)


@protocol(version=1, needs_threat=True)
def pgd_50_10(request: Request) -> Verdicts:
    """Cross-entropy, 50 steps of a quarter of the radius, the worst of 10 random starts.

    An image that one start breaks is broken; the starts after it are for the others only.
    """
    return _pgd("pgd-50-10", request, steps=50, restarts=10)


def attack(name: str) -> Protocol:
    """The protocol ``attack:NAME``: an attack of the registry, or a preset of ``diagnose``, with its settings.

    Images are attacked once; an image that is misclassified without any attack counts as broken and is not attacked.

    Raises:
        UnknownNameError: no such attack.
    """
    preset = find_preset(DIAGNOSE, name, "attack")

    def judge(request: Request) -> Verdicts:
        def run(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            return run_preset(preset, request.clf, images, labels, request.ball, generator)

        verdicts = _attacked(f"attack:{name}", request, run, restarts=1)
        function = preset.attack if ":" in preset.attack else ATTACKS.row(preset.attack).target
        return Verdicts(verdicts.right, {**verdicts.facts, "function": function, "settings": preset.settings})

    return Protocol(version=1, needs_threat=True, judge=judge)


def _pgd(name: str, request: Request, steps: int, restarts: int) -> Verdicts:
    def run(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        threat = request.ball
        size = threat.epsilon / 4
        return pgd(request.clf, images, labels, threat, steps=steps, step_size=size, generator=generator)

    return _attacked(name, request, run, restarts)


def _attacked(
    name: str, request: Request, attack: Callable[[Tensor, Tensor, torch.Generator], Tensor], restarts: int
) -> Verdicts:
    """Attacks the images that are still classified correctly, ``restarts`` times.

    Restarts run one after the other over all images, not within a batch, so that the random numbers of an image do
    not depend on the batch size.

    Raises:
        ConfigError: adversarial images outside the ball or [0, 1].
    """
    clf, images, labels, threat = request.clf, request.images, request.labels, request.ball
    verdicts = correct_in_batches(clf, images, labels, request.batch_size)
    remaining = verdicts.nonzero().squeeze(1)
    facts: dict[str, Any] = {"attacked": len(remaining)}
    request.advance(len(labels) - len(remaining))
    generator = torch.Generator().manual_seed(request.seed)
    standing = []
    for restart in range(restarts):
        for index in remaining.split(request.batch_size) if len(remaining) else ():
            batch, true_labels = as_float(images[index].to(clf.device)), labels[index].to(clf.device)
            adversarial = attack(batch, true_labels, generator)
            outside = ~threat.contains(adversarial, batch, BALL_TOLERANCE)
            if bool(outside.any()):
                raise ConfigError(
                    f"{name}: {int(outside.sum())} of {len(outside)} adversarial images lie outside {threat} or "
                    "[0, 1]; an attack returns images that threat.project has brought into both"
                )
            verdicts[index] = is_correct(clf, adversarial, true_labels).cpu()
            request.advance(len(index) if restart == restarts - 1 else int((~verdicts[index]).sum()))
        remaining = verdicts.nonzero().squeeze(1)
        standing.append(len(remaining))
    return Verdicts(verdicts, facts if restarts == 1 else facts | {"standing": standing})
