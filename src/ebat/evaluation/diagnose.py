"""Diagnosis: where clean, adversarial and generated images lie on the energy landscape of a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebat.attacks import pgd
from ebat.classifier import Classifier
from ebat.data.image_set import ImageSet
from ebat.errors import ConfigError
from ebat.evaluation.progress import bar
from ebat.evaluation.records import warn_unwritable, write_json
from ebat.evaluation.runner import Data, check_fit, made_with, open_data
from ebat.loading import load
from ebat.metrics.energy_landscape import (
    ADVERSARIAL,
    CLEAN,
    GENERATED,
    EnergyPoints,
    energy_points,
    landscape_summary,
)
from ebat.report.energy_figures import draw_histograms, draw_quiver
from ebat.report.style import save_figure
from ebat.samplers.generate import generate, stored_pca
from ebat.threat import Threat
from ebat.training.run_directory import RunDirectory

BATCH_SIZE = 250
GENERATED_STEPS = 100


def diagnose(
    clf: Classifier,
    data: Data,
    threat: Threat | None = None,
    images: int = 512,
    seed: int = 0,
    *,
    out: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Energies of clean images, of the same images attacked, and of as many generated ones.

    Adversarial: PGD on the cross-entropy, 20 steps of a quarter of the radius. Generated: 100 steps of the momentum
    sampler down the joint energy, from class-PCA starts where the classifier holds class statistics, else from uniform
    noise, with the classes of the clean images.

    Args:
        clf: the classifier; left exactly as it was.
        data: as of :func:`ebat.evaluate`.
        threat: by default the one stored with the classifier.
        images: how many, from a fixed stratified order.
        seed: of attack and sampler.
        out: a folder for ``energies.json``, ``energies.npz`` and the figures ``energy-histograms.png`` and
            ``energy-quiver.png`` (each with a ``-dark`` twin).
        progress: show a bar on standard error.

    Returns:
        The numbers of :func:`ebat.metrics.energy_landscape.landscape_summary`, and how they were made.

    Raises:
        ConfigError: no threat given or stored, or a count below 1.
    """
    threat = threat or clf.threat
    if threat is None:
        raise ConfigError(
            "diagnose: the classifier has no threat stored; pass threat=ebat.Threat(norm, radius)"
        )
    if images < 1:
        raise ConfigError(f"images: {images} asked for; give a count of at least 1")
    opened = open_data(clf, data)
    check_fit(clf, opened)
    part = opened.first(images)
    start = "uniform" if stored_pca(clf) is None else "class-pca"
    points = _points(clf, part, threat, start, seed, progress)
    record = {
        "count": len(part),
        "data": {"name": part.name, "split": part.split},
        "threat": {"norm": threat.norm, "radius": threat.radius},
        "attack": "pgd, cross-entropy, 20 steps",
        "generated": f"momentum, joint energy, {GENERATED_STEPS} steps from {start}",
        "seed": seed,
        "checkpoint": dict(clf.about),
        **landscape_summary(points),
        **made_with(clf.device),
    }
    if out is not None:
        _write(Path(out), record, points)
    return record


def diagnose_run(
    path: str | Path,
    images: int = 512,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """:func:`diagnose` on the run's own test images, written to ``figures/`` of the run."""
    config = RunDirectory.open(path).config()
    clf = load(path).to(device)
    data = open_data(clf, config.data.name, config.data.root, config.data.size)
    return diagnose(clf, data, None, images, seed, out=Path(path) / "figures", progress=progress)


def _points(
    clf: Classifier, data: ImageSet, threat: Threat, start: str, seed: int, progress: bool
) -> dict[str, EnergyPoints]:
    """The three sets, ``clean`` and ``adversarial`` row by row the same images."""
    attack, sampler = (torch.Generator().manual_seed(seed) for _ in range(2))
    parts: dict[str, list[EnergyPoints]] = {CLEAN: [], ADVERSARIAL: [], GENERATED: []}
    with bar("diagnose", len(data), progress) as advance:
        for places in torch.arange(len(data)).split(BATCH_SIZE):
            images, labels = data.float_images(places, device=clf.device), data.labels[places].to(clf.device)
            starred = pgd(clf, images, labels, threat, steps=20, generator=attack)
            made = generate(clf, labels, start, steps=GENERATED_STEPS, data=data, generator=sampler)
            for name, found in ((CLEAN, images), (ADVERSARIAL, starred), (GENERATED, made)):
                parts[name].append(energy_points(clf, found, labels))
            advance(len(places))

    def joined(found: list[EnergyPoints]) -> EnergyPoints:
        return EnergyPoints(torch.cat([p.marginal for p in found]), torch.cat([p.joint for p in found]))

    return {name: joined(found) for name, found in parts.items()}


def _write(out: Path, record: dict[str, Any], points: dict[str, EnergyPoints]) -> None:
    arrays = {
        f"{name}_{e}": getattr(found, e).numpy()
        for name, found in points.items()
        for e in ("marginal", "joint")
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out / "energies.npz", **arrays)
        save_figure(out / "energy-histograms.png", lambda theme: draw_histograms(points, theme))
        save_figure(
            out / "energy-quiver.png", lambda theme: draw_quiver(points[CLEAN], points[ADVERSARIAL], theme)
        )
    except OSError as error:
        warn_unwritable(out, error)
        return
    write_json(out / "energies.json", record)
