"""Diagnosis: where clean, adversarial and generated images lie on the energy landscape of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trilemma.classifier import Classifier
from trilemma.errors import ConfigError
from trilemma.evaluation.landscape import GENERATED_STEPS, Landscape, landscape
from trilemma.evaluation.landscape_attacks import ATTACKS, chosen
from trilemma.evaluation.lint.rows import lint_data
from trilemma.evaluation.records import warn_unwritable, write_json
from trilemma.evaluation.runner import Data, check_fit, made_with, open_data
from trilemma.loading import load
from trilemma.metrics.energy_landscape import ADVERSARIAL, CLEAN, ENERGIES, landscape_summary
from trilemma.report.attack_figures import draw_deltas, draw_moves
from trilemma.report.energy_figures import draw_histograms, draw_quiver
from trilemma.report.style import save_figure
from trilemma.samplers.generate import stored_pca
from trilemma.threat import Threat
from trilemma.training.run_directory import RunDirectory


def diagnose(
    clf: Classifier,
    data: Data,
    threat: Threat | None = None,
    images: int = 512,
    seed: int = 0,
    *,
    attacks: Sequence[str] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Energies of clean images, of the same images under several attacks, and of as many generated ones.

    Generated: 100 steps of the momentum sampler down the joint energy, from class-PCA starts where the classifier holds
    class statistics, else from uniform noise, with the classes of the clean images.

    Args:
        clf: the classifier; left exactly as it was.
        data: as of :func:`trilemma.evaluate`.
        threat: by default the one stored with the classifier.
        images: how many, from a fixed stratified order.
        seed: of each attack and of the sampler.
        attacks: names of :data:`trilemma.evaluation.landscape_attacks.ATTACKS`, by default eight of them, PGD first.
            The first one makes the set ``adversarial``.
        out: a folder for ``energies.json``, ``energies.npz``, ``energies-attacks.npz`` and the figures
            ``energy-histograms.png``, ``energy-quiver.png``, ``energy-attacks.png`` and ``energy-deltas.png``, each
            with a ``-dark`` twin.
        progress: show a bar on standard error.

    Returns:
        The numbers of :func:`trilemma.metrics.energy_landscape.landscape_summary`, how they were made,
        under ``lint`` what the lint found, and under ``moves`` what each attack does to the images that are classified
        right as they are (:func:`trilemma.metrics.energy_landscape.move_summary`).

    Raises:
        ConfigError: no threat given or stored, or a count below 1.
        UnknownNameError: no such attack.
    """
    names = chosen(attacks)
    threat = threat or clf.threat
    if threat is None:
        raise ConfigError(
            "diagnose: the classifier has no threat stored; pass threat=trilemma.Threat(norm, radius)"
        )
    if images < 1:
        raise ConfigError(f"images: {images} asked for; give a count of at least 1")
    opened = open_data(clf, data)
    check_fit(clf, opened)
    part = opened.first(images)
    linted = lint_data(clf, part, threat, seed)
    start = "uniform" if stored_pca(clf) is None else "class-pca"
    found = landscape(clf, part, threat, names, start, seed, progress)
    record = {
        "lint": linted.record(),
        "count": len(part),
        "data": {"name": part.name, "split": part.split},
        "threat": {"norm": threat.norm, "radius": threat.radius},
        "attack": f"{names[0]}, {ATTACKS[names[0]].words(clf.num_classes)}",
        "generated": f"momentum, joint energy, {GENERATED_STEPS} steps from {start}",
        "seed": seed,
        "checkpoint": dict(clf.about),
        **landscape_summary(found.sets),
        "moves": found.moves(),
        **made_with(clf.device),
    }
    if out is not None:
        _write(Path(out), record, found)
    return record


def diagnose_run(
    path: str | Path,
    images: int = 512,
    seed: int = 0,
    *,
    attacks: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """:func:`diagnose` on the run's own test images, written to ``figures/`` of the run."""
    config = RunDirectory.open(path).config()
    clf = load(path).to(device)
    data = open_data(clf, config.data.name, config.data.root, config.data.size)
    figures = Path(path) / "figures"
    return diagnose(clf, data, None, images, seed, attacks=attacks, out=figures, progress=progress)


def _write(out: Path, record: dict[str, Any], found: Landscape) -> None:
    sets, attack = found.sets, next(iter(found.attacked))
    try:
        out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            out / "energies.npz",
            **{f"{name}_{e}": getattr(points, e).numpy() for name, points in sets.items() for e in ENERGIES},
        )
        save_figure(out / "energy-histograms.png", lambda theme: draw_histograms(sets, theme))
        save_figure(
            out / "energy-quiver.png",
            lambda theme: draw_quiver(sets[CLEAN], sets[ADVERSARIAL], theme, attack),
        )
        if record["moves"]["count"]:
            _write_moves(out, record["moves"], found)
    except OSError as error:
        warn_unwritable(out, error)
        return
    write_json(out / "energies.json", record)


def _write_moves(out: Path, moves: dict[str, Any], found: Landscape) -> None:
    """The figures of the attacks, and the energies of the images that are right as they are."""
    right = found.clean.right
    clean = found.clean.of(right)
    attacked = {name: seen.of(right) for name, seen in found.attacked.items()}
    np.savez_compressed(
        out / "energies-attacks.npz",
        **{
            f"{name}_{e}": getattr(points, e).numpy()
            for name, points in {CLEAN: clean, **attacked}.items()
            for e in ENERGIES
        },
    )
    save_figure(out / "energy-attacks.png", lambda theme: draw_moves(moves, theme))
    save_figure(out / "energy-deltas.png", lambda theme: draw_deltas(clean, attacked, theme))
