"""Runs a preset of :mod:`trilemma.config.presets`: a registered attack with its settings."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.config.presets import Preset
from trilemma.config.registry import ATTACKS, import_object
from trilemma.threat import Threat


def run_preset(
    preset: Preset,
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    generator: torch.Generator,
) -> Tensor:
    """Adversarial images ``[N, C, H, W]``, made by the attack of ``preset``.

    Args:
        preset: attack and settings.
        clf: the classifier.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``.
        threat: norm and radius.
        generator: source of random numbers; passed only if the attack has a parameter ``generator``.
    """
    attack: Callable[..., Tensor] = (
        import_object(preset.attack) if ":" in preset.attack else ATTACKS.get(preset.attack)
    )
    random = {"generator": generator} if "generator" in signature(attack).parameters else {}
    return attack(clf, images, labels, threat, **random, **preset.settings)
