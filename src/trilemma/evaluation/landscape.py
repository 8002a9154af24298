"""Where clean, attacked and generated images lie on the energy landscape of a classifier, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.evaluation.landscape_attacks import ATTACKS
from trilemma.evaluation.progress import bar
from trilemma.metrics.energy_landscape import (
    ADVERSARIAL,
    CLEAN,
    ENERGIES,
    GENERATED,
    EnergyPoints,
    energy_points,
    finite_logits,
    move_summary,
    points_of,
    spread,
)
from trilemma.registry import import_object
from trilemma.samplers.generate import generate
from trilemma.threat import Threat

BATCH_SIZE = 250
GENERATED_STEPS = 100


@dataclass(frozen=True)
class Seen:
    """Energies of N images, and which of them the classifier says right: bool ``[N]``."""

    points: EnergyPoints
    right: Tensor

    def of(self, rows: Tensor) -> EnergyPoints:
        """The energies of some rows, bool ``[N]``."""
        return EnergyPoints(self.points.marginal[rows], self.points.joint[rows])


@dataclass(frozen=True)
class Landscape:
    """Three kinds of images on one landscape, row by row the same.

    Attributes:
        clean: the images as they are.
        attacked: attack name to the same images under it, the first asked for first.
        generated: as many samples of the same classes.
        num_classes: of the classifier.
    """

    clean: Seen
    attacked: dict[str, Seen]
    generated: EnergyPoints
    num_classes: int

    @property
    def sets(self) -> dict[str, EnergyPoints]:
        """``clean``, ``adversarial`` (under the first attack) and ``generated``."""
        first = next(iter(self.attacked.values()))
        return {CLEAN: self.clean.points, ADVERSARIAL: first.points, GENERATED: self.generated}

    def moves(self) -> dict[str, Any]:
        """How each attack moves the images that are classified right as they are; no attack if there are none.

        An attack on a classifier's verdict does not touch the other images, PGD does; leaving them out, all of them
        are judged on the same ones.
        """
        right = self.clean.right
        clean = self.clean.of(right)
        found: dict[str, Any] = {"count": int(right.sum()), "clean": {}, "attacks": {}}
        if not found["count"]:
            return found
        found["clean"] = {energy: spread(getattr(clean, energy)) for energy in ENERGIES}
        found["attacks"] = {
            name: {
                "about": ATTACKS[name].words(self.num_classes),
                "aim": ATTACKS[name].aim,
                **move_summary(clean, seen.of(right), ~seen.right[right]),
            }
            for name, seen in self.attacked.items()
        }
        return found


def landscape(
    clf: Classifier,
    data: ImageSet,
    threat: Threat,
    attacks: Sequence[str],
    start: str,
    seed: int,
    progress: bool = False,
) -> Landscape:
    """Attacks and generates as many images as ``data`` holds; nothing but their energies is kept.

    Args:
        clf: left exactly as it was.
        attacks: names of :data:`trilemma.evaluation.landscape_attacks.ATTACKS`, at least one. Each has its own random
            numbers, so that it finds the same images whatever the others are.
        start: of the samples, a name of :data:`trilemma.samplers.starts.STARTS`.
        seed: of each attack and of the sampler.
        progress: show a bar on standard error.
    """
    names = (CLEAN, *attacks)
    parts: dict[str, list[Seen]] = {name: [] for name in names}
    generated: list[EnergyPoints] = []
    generators = {name: torch.Generator().manual_seed(seed) for name in (*attacks, GENERATED)}
    with bar("diagnose", len(data) * (len(attacks) + 1), progress) as advance:
        for places in torch.arange(len(data)).split(BATCH_SIZE):
            images, labels = data.float_images(places, device=clf.device), data.labels[places].to(clf.device)
            parts[CLEAN].append(_see(clf, images, labels))
            for name in attacks:
                run, settings = import_object(ATTACKS[name].target), ATTACKS[name].settings
                starred = run(clf, images, labels, threat, generator=generators[name], **settings)
                parts[name].append(_see(clf, starred, labels))
                advance(len(places))
            made = generate(
                clf, labels, start, steps=GENERATED_STEPS, data=data, generator=generators[GENERATED]
            )
            generated.append(energy_points(clf, made, labels))
            advance(len(places))
    seen = {
        name: Seen(_joined([p.points for p in found]), torch.cat([p.right for p in found]))
        for name, found in parts.items()
    }
    return Landscape(seen.pop(CLEAN), seen, _joined(generated), clf.num_classes)


def _see(clf: Classifier, images: Tensor, labels: Tensor) -> Seen:
    logits = finite_logits(clf, images)
    return Seen(points_of(logits, labels), (logits.argmax(1) == labels).cpu())


def _joined(found: list[EnergyPoints]) -> EnergyPoints:
    return EnergyPoints(torch.cat([p.marginal for p in found]), torch.cat([p.joint for p in found]))
