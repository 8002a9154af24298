"""Energies of clean, adversarial and generated images, and statistics of the differences between these sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import CheckpointError, DataError
from trilemma.files import read_npz, write_npz
from trilemma.metrics.accuracy import Share, share
from trilemma.metrics.wasserstein import wasserstein_distance

CLEAN, ADVERSARIAL, GENERATED = "clean", "adversarial", "generated"
SETS = (CLEAN, ADVERSARIAL, GENERATED)
ENERGIES = ("marginal", "joint")


@dataclass(frozen=True)
class EnergyPoints:
    """The energies of a set of images: E(x) and E(x, y), each float32 ``[N]`` on the CPU, in logit units."""

    marginal: Tensor
    joint: Tensor


@torch.no_grad()
def finite_logits(clf: Classifier, images: Tensor, batch_size: int = 250) -> Tensor:
    """Logits ``[N, K]`` of images in eval mode.

    Args:
        clf: left unchanged.
        images: ``[N, C, H, W]`` in [0, 1].
        batch_size: images per forward pass.

    Raises:
        CheckpointError: some logits are not finite.
    """
    with inner_loop(clf, "eval"):
        logits = torch.cat([clf(part.to(clf.device)) for part in images.split(batch_size)])
    non_finite = int((~torch.isfinite(logits)).any(1).sum())
    if non_finite:
        raise CheckpointError(
            f"energies: the logits of {non_finite} of {len(logits)} images are not finite; the classifier has "
            "diverged, use an earlier checkpoint"
        )
    return logits


def points_from_logits(logits: Tensor, labels: Tensor) -> EnergyPoints:
    """Energies from logits ``[N, K]`` and labels ``[N]``."""
    joint = energies.joint_energy(logits, labels.to(logits.device))
    return EnergyPoints(energies.marginal_energy(logits).cpu(), joint.cpu())


def energy_points(clf: Classifier, images: Tensor, labels: Tensor, batch_size: int = 250) -> EnergyPoints:
    """Energies of images in eval mode.

    Args:
        clf: left unchanged.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``; for generated images the class for which they were generated.
        batch_size: images per forward pass.

    Raises:
        CheckpointError: some logits are not finite.
    """
    return points_from_logits(finite_logits(clf, images, batch_size), labels)


def summary_statistics(values: Tensor) -> dict[str, float]:
    """``mean``, ``median``, and the 5 % and 95 % quantiles ``p05`` and ``p95`` of values ``[N]``, N at least 1."""
    low, middle, high = (float(values.quantile(q)) for q in (0.05, 0.5, 0.95))
    return {"mean": float(values.mean()), "median": middle, "p05": low, "p95": high}


def shift_summary(clean: EnergyPoints, adversarial: EnergyPoints) -> dict[str, Any]:
    """Statistics of the delta energies (clean minus adversarial) and their length, and the fraction of abnormal images.

    Args:
        clean, adversarial: energies of the same images before and after an attack.
    """
    marginal, joint = clean.marginal - adversarial.marginal, clean.joint - adversarial.joint
    length = (marginal.square() + joint.square()).sqrt()
    return {
        "delta_marginal": summary_statistics(marginal),
        "delta_joint": summary_statistics(joint),
        "shift": summary_statistics(length),
        "abnormal": _with_interval(share(joint > marginal)),
    }


def _with_interval(fraction: Share) -> dict[str, float]:
    """A fraction and its interval as a dictionary, without the count."""
    return {"value": fraction.value, "lower": fraction.lower, "upper": fraction.upper}


def move_summary(clean: EnergyPoints, adversarial: EnergyPoints, broken: Tensor) -> dict[str, Any]:
    """Statistics of how an attack changes the energies of images.

    Args:
        clean, adversarial: energies of the same N images before and after the attack, N at least 1.
        broken: bool ``[N]``, whether the adversarial image is misclassified.

    Returns:
        ``marginal`` and ``joint``: statistics of the energies of the adversarial images; the keys of
        :func:`shift_summary`; ``broken`` and ``risen``, the fractions of misclassified images and of images with E(x*)
        above E(x), with their intervals; ``distance``, the 1-Wasserstein distances to the clean energies.
    """
    shares = {"broken": broken, "risen": adversarial.marginal > clean.marginal}
    return {
        **{name: _with_interval(share(which)) for name, which in shares.items()},
        **{e: summary_statistics(getattr(adversarial, e)) for e in ENERGIES},
        **shift_summary(clean, adversarial),
        "distance": {e: wasserstein_distance(getattr(clean, e), getattr(adversarial, e)) for e in ENERGIES},
    }


def landscape_summary(points: Mapping[str, EnergyPoints]) -> dict[str, Any]:
    """The values shown in the energy figures.

    Args:
        points: energies by set name: any of ``clean``, ``adversarial`` (the same images, attacked) and ``generated``.

    Returns:
        ``sets`` (:func:`summary_statistics` per set and energy), ``distances`` (1-Wasserstein distance per pair of sets
        and energy, logit units) and, if ``clean`` and ``adversarial`` are given, ``shift`` (:func:`shift_summary`).
    """
    names = [name for name in SETS if name in points]
    summary: dict[str, Any] = {
        "sets": {
            name: {
                "count": len(points[name].marginal),
                **{e: summary_statistics(getattr(points[name], e)) for e in ENERGIES},
            }
            for name in names
        },
        "distances": {
            f"{a}-{b}": {
                e: wasserstein_distance(getattr(points[a], e), getattr(points[b], e)) for e in ENERGIES
            }
            for a, b in combinations(names, 2)
        },
    }
    if CLEAN in points and ADVERSARIAL in points:
        summary["shift"] = shift_summary(points[CLEAN], points[ADVERSARIAL])
    return summary


def write_points(path: Path, points: Mapping[str, EnergyPoints]) -> None:
    """Writes energies by set name as an ``.npz`` with the arrays ``NAME_marginal`` and ``NAME_joint``."""
    arrays = {f"{name}_{e}": getattr(point, e).numpy() for name, point in points.items() for e in ENERGIES}
    write_npz(path, arrays)


def read_points(path: Path) -> dict[str, EnergyPoints]:
    """Reads the energies that :func:`write_points` wrote.

    Raises:
        DataError: the file is damaged or cannot be read.
    """
    try:
        arrays = {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
        names = {name.rpartition("_")[0] for name in arrays}
        return {name: EnergyPoints(arrays[f"{name}_marginal"], arrays[f"{name}_joint"]) for name in names}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run `trilemma diagnose` again") from None
