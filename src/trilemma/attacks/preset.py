"""Runs a preset of :mod:`trilemma.config.presets`: a registered attack with its settings."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier, check_returned
from trilemma.config.plug_ins import call_registered
from trilemma.config.presets import Preset
from trilemma.config.registry import ATTACKS, import_object
from trilemma.errors import ConfigError
from trilemma.threat import Threat

# Allows for the rounding of clean + delta in float32, summed over an image.
BALL_TOLERANCE = 1e-5


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

    Raises:
        ConfigError: the attack returned something else than images of this shape inside the ball and [0, 1].
    """
    attack = find_attack(preset)
    what = f"attack {preset.attack!r}"
    random = {"generator": generator} if "generator" in signature(attack).parameters else {}
    # a copy, since a user's attack may write into its images
    returned = call_registered(what, attack, clf, images.clone(), labels, threat, **random, **preset.settings)
    adversarial = check_returned(what, returned, images.shape).detach().to(images.dtype)
    if outside := count_outside(threat, adversarial, images):
        raise ConfigError(
            f"{what}: {outside} of {len(images)} adversarial images lie outside {threat} or [0, 1]; "
            "an attack returns projected images, as threat.project does"
        )
    return adversarial


def attack_target(preset: Preset) -> str:
    """The ``"module:function"`` of a preset's attack."""
    return preset.attack if ":" in preset.attack else ATTACKS.row(preset.attack).target


def find_attack(preset: Preset) -> Callable[..., Tensor]:
    """The function of a preset's attack."""
    attack: Callable[..., Tensor] = (
        import_object(preset.attack) if ":" in preset.attack else ATTACKS.get(preset.attack)
    )
    return attack


def settings_of(preset: Preset) -> dict[str, Any]:
    """The settings of a preset, with the defaults of its attack for those that it leaves open."""
    defaults = {
        name: parameter.default
        for name, parameter in signature(find_attack(preset)).parameters.items()
        if isinstance(parameter.default, bool | int | float | str)
    }
    return defaults | preset.settings


def count_outside(threat: Threat, adversarial: Tensor, clean: Tensor) -> int:
    """Number of adversarial images outside the ball around their clean image, outside [0, 1], or not finite."""
    return int((~threat.contains(adversarial, clean, BALL_TOLERANCE)).sum())
