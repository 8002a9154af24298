"""Clean, adversarial and generated images as three sets of points on one energy landscape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import CheckpointError
from trilemma.metrics.accuracy import Share, share
from trilemma.metrics.wasserstein import wasserstein_distance

CLEAN, ADVERSARIAL, GENERATED = "clean", "adversarial", "generated"
SETS = (CLEAN, ADVERSARIAL, GENERATED)
ENERGIES = ("marginal", "joint")


@dataclass(frozen=True)
class EnergyPoints:
    """Where a set of images lies: E(x) and E(x, y), each float32 ``[N]`` on the CPU, in logit units."""

    marginal: Tensor
    joint: Tensor


@torch.no_grad()
def finite_logits(clf: Classifier, images: Tensor, batch_size: int = 250) -> Tensor:
    """Logits ``[N, K]`` in eval mode; the classifier is left as it was.

    Args:
        images: ``[N, C, H, W]`` in [0, 1].
        batch_size: images per forward.

    Raises:
        CheckpointError: logits that are not finite, so that there is no landscape.
    """
    with inner_loop(clf, "eval"):
        logits = torch.cat([clf(part.to(clf.device)) for part in images.split(batch_size)])
    wrong = int((~torch.isfinite(logits)).any(1).sum())
    if wrong:
        raise CheckpointError(
            f"energies: the logits of {wrong} of {len(logits)} images are not finite; this classifier has diverged, "
            "use an earlier checkpoint"
        )
    return logits


def points_of(logits: Tensor, labels: Tensor) -> EnergyPoints:
    """Energies of logits ``[N, K]`` and labels ``[N]``."""
    joint = energies.joint_energy(logits, labels.to(logits.device))
    return EnergyPoints(energies.marginal_energy(logits).cpu(), joint.cpu())


def energy_points(clf: Classifier, images: Tensor, labels: Tensor, batch_size: int = 250) -> EnergyPoints:
    """Energies of images in eval mode; the classifier is left as it was.

    Args:
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``; for generated images the class that was asked for.
        batch_size: images per forward.

    Raises:
        CheckpointError: logits that are not finite, so that there is no landscape.
    """
    return points_of(finite_logits(clf, images, batch_size), labels)


def spread(values: Tensor) -> dict[str, float]:
    """Mean, median, and the 5 % and 95 % points of ``[N]``, N at least 1."""
    low, middle, high = (float(values.quantile(q)) for q in (0.05, 0.5, 0.95))
    return {"mean": float(values.mean()), "median": middle, "p05": low, "p95": high}


def shift_summary(clean: EnergyPoints, adversarial: EnergyPoints) -> dict[str, Any]:
    """Delta energies (clean minus adversarial), their length, and the share of abnormal adversarial examples."""
    marginal, joint = clean.marginal - adversarial.marginal, clean.joint - adversarial.joint
    length = (marginal.square() + joint.square()).sqrt()
    return {
        "delta_marginal": spread(marginal),
        "delta_joint": spread(joint),
        "shift": spread(length),
        "abnormal": _with_interval(share(joint > marginal)),
    }


def _with_interval(found: Share) -> dict[str, float]:
    return {"value": found.value, "lower": found.lower, "upper": found.upper}


def move_summary(clean: EnergyPoints, adversarial: EnergyPoints, broken: Tensor) -> dict[str, Any]:
    """How one attack moves the energies of images.

    Args:
        clean, adversarial: the same N images before and after, N at least 1.
        broken: bool ``[N]``, misclassified after it.

    Returns:
        Of the adversarial images ``marginal`` and ``joint``; :func:`shift_summary`; ``broken`` and ``risen``, the share
        of images with E(x*) above E(x), each with its interval; and ``distance``, 1-Wasserstein to the clean ones.
    """
    shares = {"broken": broken, "risen": adversarial.marginal > clean.marginal}
    return {
        **{name: _with_interval(share(which)) for name, which in shares.items()},
        **{e: spread(getattr(adversarial, e)) for e in ENERGIES},
        **shift_summary(clean, adversarial),
        "distance": {e: wasserstein_distance(getattr(clean, e), getattr(adversarial, e)) for e in ENERGIES},
    }


def landscape_summary(points: Mapping[str, EnergyPoints]) -> dict[str, Any]:
    """The numbers behind the energy figures.

    Args:
        points: some of ``clean``, ``adversarial`` (the same images, attacked) and ``generated``.

    Returns:
        ``sets`` (per set and energy: mean, median, 5 % and 95 % points), ``distances`` (per pair of sets
        and energy: 1-Wasserstein, logit units) and, where both are there, ``shift`` from clean to adversarial.
    """
    names = [name for name in SETS if name in points]
    summary: dict[str, Any] = {
        "sets": {
            name: {
                "count": len(points[name].marginal),
                **{e: spread(getattr(points[name], e)) for e in ENERGIES},
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
    """Energies by set name, as an ``.npz`` with the arrays ``NAME_marginal`` and ``NAME_joint``."""
    arrays = {f"{name}_{e}": getattr(found, e).numpy() for name, found in points.items() for e in ENERGIES}
    np.savez_compressed(path, **arrays)


def read_points(path: Path) -> dict[str, EnergyPoints]:
    """What :func:`write_points` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    names = {name.rpartition("_")[0] for name in arrays}
    return {name: EnergyPoints(arrays[f"{name}_marginal"], arrays[f"{name}_joint"]) for name in names}
