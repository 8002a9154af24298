"""The arguments that all attacks share, checked and converted in one place."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.wrap import (
    Images,
    Labels,
    Network,
    as_classifier,
    as_images,
    as_labels,
    check_generator,
    on_device_of,
)
from trilemma.threat import Threat

# A threat, or the radius of one.
AnyThreat = Threat | str | float | Fraction | None
# A length in pixel units.
Length = str | float | Fraction | None


@dataclass(frozen=True)
class Arguments:
    """Checked arguments of an attack.

    Attributes:
        clf: the classifier; a network is wrapped.
        images: ``[N, C, H, W]`` in [0, 1] without a graph, on the classifier's device.
        labels: int64 ``[N]`` on the same device.
        threat: norm and radius.
        device: device of the images as they were passed.
    """

    clf: Classifier
    images: Tensor
    labels: Tensor
    threat: Threat
    device: torch.device

    def result(self, adversarial: Tensor) -> Tensor:
        """The images to return, on the device of the images that were passed."""
        return adversarial.to(self.device)


def attack_arguments(
    where: str,
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    norm: Any = None,
    generator: torch.Generator | None = None,
) -> Arguments:
    """Checks and converts the arguments of an attack.

    Args:
        where: the attack, for messages.
        clf: a classifier, or a network or function from images in [0, 1] to logits, which is wrapped in one.
        images: ``[N, C, H, W]`` in [0, 1], a float32 or float64 tensor or array, on any device.
        labels: one class number per image, in a tensor, an array or a list.
        threat: a threat, or a radius such as ``8 / 255`` or ``"8/255"``; ``None`` for the one stored with ``clf``.
        norm: norm of a radius; ``None`` for ``"linf"``.
        generator: ``None`` or a generator of torch.

    Raises:
        ImageError: images outside [0, 1] or of a wrong type or shape, or labels that do not fit.
        ConfigError: an invalid threat, or something else than a network or a generator.
    """
    given = as_images(images)
    classifier = as_classifier(clf, given)
    moved = on_device_of(classifier, given)
    classifier.check(moved)
    checked_labels = as_labels(labels, moved, classifier.num_classes)
    check_generator(where, generator)
    checked_threat = Threat.of(threat, norm, default=classifier.threat)
    return Arguments(classifier, moved, checked_labels, checked_threat, given.device)
