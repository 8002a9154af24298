"""Diagnosis: where clean, adversarial and generated images lie on the energy landscape of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.attacks.preset import run_preset
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.presets import Preset, diagnose_presets
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError
from trilemma.evaluation.evaluate import Data, check_fit, environment, open_data
from trilemma.evaluation.lint.rows import lint_data
from trilemma.figures.energy_landscape import draw_deltas, draw_histograms, draw_moves, draw_quiver
from trilemma.figures.style import save_figure
from trilemma.metrics.energy_landscape import (
    ADVERSARIAL,
    CLEAN,
    ENERGIES,
    GENERATED,
    EnergyPoints,
    energy_points,
    finite_logits,
    landscape_summary,
    move_summary,
    points_of,
    spread,
    write_points,
)
from trilemma.progress import bar
from trilemma.runs.records import warn_unwritable, write_json
from trilemma.runs.run_directory import RunDirectory
from trilemma.samplers.generate import generate, stored_pca
from trilemma.threat import Threat

BATCH_SIZE = 250
GENERATED_STEPS = 100


@dataclass(frozen=True)
class ForwardResult:
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
        presets: of the attacks.
    """

    clean: ForwardResult
    attacked: dict[str, ForwardResult]
    generated: EnergyPoints
    num_classes: int
    presets: Mapping[str, Preset]

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
                "about": self.presets[name].words(self.num_classes),
                "aim": self.presets[name].aim,
                **move_summary(clean, seen.of(right), ~seen.right[right]),
            }
            for name, seen in self.attacked.items()
        }
        return found


def landscape(
    clf: Classifier,
    data: ImageSet,
    threat: Threat,
    attacks: Mapping[str, Preset],
    start: str,
    seed: int,
    progress: bool = False,
) -> Landscape:
    """Attacks and generates as many images as ``data`` holds; nothing but their energies is kept.

    Args:
        clf: left exactly as it was.
        attacks: presets by name (:func:`trilemma.config.presets.diagnose_presets`), at least one. Each has its own
            random numbers, so that it finds the same images whatever the others are.
        start: of the samples, a name of :data:`trilemma.samplers.starts.STARTS`.
        seed: of each attack and of the sampler.
        progress: show a bar on standard error.
    """
    names = (CLEAN, *attacks)
    parts: dict[str, list[ForwardResult]] = {name: [] for name in names}
    generated: list[EnergyPoints] = []
    generators = {name: torch.Generator().manual_seed(seed) for name in (*attacks, GENERATED)}
    with bar("diagnose", len(data) * (len(attacks) + 1), progress) as advance:
        for places in torch.arange(len(data)).split(BATCH_SIZE):
            images, labels = data.float_images(places, device=clf.device), data.labels[places].to(clf.device)
            parts[CLEAN].append(_see(clf, images, labels))
            for name, preset in attacks.items():
                adversarial = run_preset(preset, clf, images, labels, threat, generators[name])
                parts[name].append(_see(clf, adversarial, labels))
                advance(len(places))
            made = generate(
                clf, labels, start, steps=GENERATED_STEPS, data=data, generator=generators[GENERATED]
            )
            generated.append(energy_points(clf, made, labels))
            advance(len(places))
    seen = {
        name: ForwardResult(_joined([p.points for p in found]), torch.cat([p.right for p in found]))
        for name, found in parts.items()
    }
    return Landscape(seen.pop(CLEAN), seen, _joined(generated), clf.num_classes, attacks)


def _see(clf: Classifier, images: Tensor, labels: Tensor) -> ForwardResult:
    logits = finite_logits(clf, images)
    return ForwardResult(points_of(logits, labels), (logits.argmax(1) == labels).cpu())


def _joined(found: list[EnergyPoints]) -> EnergyPoints:
    return EnergyPoints(torch.cat([p.marginal for p in found]), torch.cat([p.joint for p in found]))


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
        attacks: names of the presets :data:`trilemma.config.presets.DIAGNOSE` or of registered attacks, by default
            eight of them, PGD first. The first one makes the set ``adversarial``.
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
    presets = diagnose_presets(attacks)
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
    first = next(iter(presets))
    found = landscape(clf, part, threat, presets, start, seed, progress)
    record = {
        "lint": linted.record(),
        "count": len(part),
        "data": {"name": part.name, "split": part.split},
        "threat": {"norm": threat.norm, "radius": threat.radius},
        "attack": f"{first}, {presets[first].words(clf.num_classes)}",
        "generated": f"momentum, joint energy, {GENERATED_STEPS} steps from {start}",
        "seed": seed,
        "checkpoint": dict(clf.about),
        **landscape_summary(found.sets),
        "moves": found.moves(),
        **environment(clf.device),
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
        write_points(out / "energies.npz", sets)
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
    write_points(out / "energies-attacks.npz", {CLEAN: clean, **attacked})
    save_figure(out / "energy-attacks.png", lambda theme: draw_moves(moves, theme))
    save_figure(out / "energy-deltas.png", lambda theme: draw_deltas(clean, attacked, theme))
