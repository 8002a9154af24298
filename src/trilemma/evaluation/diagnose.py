"""Diagnosis: the energies of clean, adversarial and generated images of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.attacks.arguments import AnyThreat
from trilemma.attacks.preset import run_preset
from trilemma.classifier.classifier import Classifier
from trilemma.config.presets import Preset, diagnose_presets
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError, NotStoredError
from trilemma.evaluation.evaluate import check_fit, check_output, environment, which_images
from trilemma.evaluation.lint.rows import lint_data
from trilemma.evaluation.source import Data, Source, find_run, open_images, open_source
from trilemma.figures.energy_landscape import draw_deltas, draw_histograms, draw_moves, draw_quiver
from trilemma.figures.style import save_figure
from trilemma.files import file_sha256
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
    points_from_logits,
    summary_statistics,
    write_points,
)
from trilemma.progress import bar
from trilemma.runs.lock import writing_inside
from trilemma.runs.records import keeps, note_kept, write_json
from trilemma.samplers.generate import generate, stored_pca
from trilemma.storing import go_on_without
from trilemma.threat import Threat
from trilemma.units import count, seed_number

BATCH_SIZE = 250
GENERATED_STEPS = 100


@dataclass(frozen=True)
class ForwardResult:
    """Energies of N images, and which of them are classified correctly, bool ``[N]``."""

    points: EnergyPoints
    correct: Tensor

    def subset(self, mask: Tensor) -> EnergyPoints:
        """The energies of the images where ``mask``, bool ``[N]``, is true."""
        return EnergyPoints(self.points.marginal[mask], self.points.joint[mask])


@dataclass(frozen=True)
class Landscape:
    """Energies of clean, adversarial and generated images; index i has the same label in all of them.

    Attributes:
        clean: the clean images.
        attacked: attack name to the adversarial images of the same clean images, in the order of the attacks.
        generated: the same number of samples, of the same classes.
        num_classes: number of classes of the classifier.
        presets: attack name to preset.
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
        """How each attack changes the energies of the images that are classified correctly without attack.

        Attacks such as FAB do not change misclassified images, while PGD does; all attacks are compared on the same
        images. ``attacks`` is empty if no image is classified correctly.
        """
        correct = self.clean.correct
        clean = self.clean.subset(correct)
        summary: dict[str, Any] = {"count": int(correct.sum()), "clean": {}, "attacks": {}}
        if not summary["count"]:
            return summary
        summary["clean"] = {energy: summary_statistics(getattr(clean, energy)) for energy in ENERGIES}
        summary["attacks"] = {
            name: {
                "about": self.presets[name].words(self.num_classes),
                "aim": self.presets[name].aim,
                **move_summary(clean, result.subset(correct), ~result.correct[correct]),
            }
            for name, result in self.attacked.items()
        }
        return summary


def landscape(
    clf: Classifier,
    data: ImageSet,
    threat: Threat,
    attacks: Mapping[str, Preset],
    start: str,
    seed: int,
    progress: bool = False,
) -> Landscape:
    """Attacks all images of ``data``, generates as many samples, and returns the energies; images are not stored.

    Args:
        clf: the classifier; its state is restored.
        data: the clean images.
        threat: norm and radius.
        attacks: presets by name (:func:`trilemma.config.presets.diagnose_presets`), at least one. Each has its own
            random numbers, so that its result does not depend on the other attacks.
        start: start of the samples, a name of :data:`trilemma.samplers.starts.STARTS`.
        seed: seed of each attack and of the sampler.
        progress: show a progress bar on standard error.
    """
    names = (CLEAN, *attacks)
    parts: dict[str, list[ForwardResult]] = {name: [] for name in names}
    generated: list[EnergyPoints] = []
    generators = {name: torch.Generator().manual_seed(seed) for name in (*attacks, GENERATED)}
    with bar("diagnose", len(data) * (len(attacks) + 1), progress) as advance:
        for index in torch.arange(len(data)).split(BATCH_SIZE):
            images, labels = data.float_images(index, device=clf.device), data.labels[index].to(clf.device)
            parts[CLEAN].append(_forward(clf, images, labels))
            for name, preset in attacks.items():
                adversarial = run_preset(preset, clf, images, labels, threat, generators[name])
                parts[name].append(_forward(clf, adversarial, labels))
                advance(len(index))
            samples = generate(
                clf, labels, start, steps=GENERATED_STEPS, data=data, generator=generators[GENERATED]
            )
            generated.append(energy_points(clf, samples, labels))
            advance(len(index))
    results = {
        name: ForwardResult(
            _concatenate([b.points for b in batches]), torch.cat([b.correct for b in batches])
        )
        for name, batches in parts.items()
    }
    return Landscape(results.pop(CLEAN), results, _concatenate(generated), clf.num_classes, attacks)


def _forward(clf: Classifier, images: Tensor, labels: Tensor) -> ForwardResult:
    logits = finite_logits(clf, images)
    return ForwardResult(points_from_logits(logits, labels), (logits.argmax(1) == labels).cpu())


def _concatenate(parts: list[EnergyPoints]) -> EnergyPoints:
    return EnergyPoints(torch.cat([p.marginal for p in parts]), torch.cat([p.joint for p in parts]))


def diagnose(
    source: Source,
    data: Data | None = None,
    threat: AnyThreat = None,
    images: int = 512,
    seed: int = 0,
    *,
    norm: Any = None,
    attacks: Sequence[str] | None = None,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Energies of clean images, of the same images under several attacks, and of as many generated images.

    The generated images have the classes of the clean images. They are made by 100 steps of the momentum sampler down
    the joint energy, from class-PCA starts if the classifier stores class statistics, otherwise from uniform noise.

    Args:
        source: a run folder, a classifier file, a :class:`Run`, a :class:`Classifier` or a network; its state is
            restored.
        data: as in :func:`trilemma.evaluate`; by default the test images of the data that it was trained on.
        threat: norm and radius, or a radius such as ``8 / 255``; by default the threat stored with the classifier.
        images: number of images, the first ones of a fixed stratified order.
        seed: seed of each attack and of the sampler.
        norm: norm of ``threat`` if that is a radius; ``"linf"`` by default.
        attacks: names of presets of :data:`trilemma.config.presets.DIAGNOSE` or of registered attacks, by default
            eight of them, PGD first. The first attack makes the set ``adversarial``.
        out: folder for ``energies.json``, ``energies.npz``, ``energies-attacks.npz`` and the figures
            ``energy-histograms.png``, ``energy-quiver.png``, ``energy-attacks.png`` and ``energy-deltas.png``, each
            also as a ``-dark`` version; by default ``figures/`` of a run, and nothing is written otherwise. A diagnosis
            of more images of the same classifier is kept there, and this one is written to a subfolder.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        progress: show a progress bar on standard error.

    Returns:
        The values of :func:`trilemma.metrics.energy_landscape.landscape_summary`; the settings; the lint findings
        under ``lint``; and under ``moves`` the effect of each attack on the images that are classified correctly
        without attack (:func:`trilemma.metrics.energy_landscape.move_summary`).

    Raises:
        ConfigError: no threat given or stored, or a count below 1.
        UnknownNameError: unknown attack.
    """
    presets = diagnose_presets(attacks)
    images, seed = count("diagnose", "images", images), seed_number("diagnose", seed)
    run, clf = find_run(source), open_source(source, data, device)
    if threat is None and norm is None and clf.threat is None:
        raise ConfigError(
            "diagnose: the classifier has no threat stored; pass threat=trilemma.Threat(norm, radius)"
        )
    threat = Threat.of(threat, norm, default=clf.threat)
    opened = open_images(clf, run, data)
    check_fit(clf, opened)
    check_output(clf, opened)
    part = opened.first(images)
    if out is None and run is not None:
        out = run.path / "figures"
    with writing_inside(out):
        lint_result = lint_data(clf, part, threat, seed)
        start = "uniform" if stored_pca(clf) is None else "class-pca"
        first = next(iter(presets))
        energies = landscape(clf, part, threat, presets, start, seed, progress)
        record = {
            "lint": lint_result.record(),
            "count": len(part),
            "data": {"name": part.name, "split": part.split, "images": which_images(part, len(opened))},
            "threat": {"norm": threat.norm, "radius": threat.radius},
            "attack": f"{first}, {presets[first].words(clf.num_classes)}",
            "generated": f"momentum, joint energy, {GENERATED_STEPS} steps from {start}",
            "seed": seed,
            "checkpoint": clf.provenance(),
            **landscape_summary(energies.sets),
            "moves": energies.moves(),
            **environment(clf.device),
        }
        if out is not None:
            stored = Path(out) / "energies.json"
            kept = keeps(stored, record, "count")
            folder = Path(out) / f"{len(part)}-images" if kept else Path(out)
            try:
                _write(folder, record, energies)
            except NotStoredError as error:
                go_on_without(error)
            else:
                if kept:
                    note_kept(stored, "a diagnosis of more images", folder)
        return record


def _write(out: Path, record: dict[str, Any], energies: Landscape) -> None:
    """Writes the record, the energies and the figures to the folder ``out``; raises :class:`NotStoredError`."""
    sets, attack = energies.sets, next(iter(energies.attacked))
    points = out / "energies.npz"
    write_points(points, sets)
    # Ties the record to these energies, in case the process is killed before it is written.
    record["points_sha256"] = file_sha256(points)
    save_figure(out / "energy-histograms.png", lambda theme: draw_histograms(sets, theme))
    save_figure(
        out / "energy-quiver.png", lambda theme: draw_quiver(sets[CLEAN], sets[ADVERSARIAL], theme, attack)
    )
    if record["moves"]["count"]:
        _write_moves(out, record["moves"], energies)
    write_json(out / "energies.json", record)


def _write_moves(out: Path, moves: dict[str, Any], energies: Landscape) -> None:
    """Writes figures and energies of all attacks, for the images that are classified correctly without attack."""
    correct = energies.clean.correct
    clean = energies.clean.subset(correct)
    attacked = {name: result.subset(correct) for name, result in energies.attacked.items()}
    write_points(out / "energies-attacks.npz", {CLEAN: clean, **attacked})
    save_figure(out / "energy-attacks.png", lambda theme: draw_moves(moves, theme))
    save_figure(out / "energy-deltas.png", lambda theme: draw_deltas(clean, attacked, theme))
