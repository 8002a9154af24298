"""Clean, adversarial and generated images as three sets of points on one energy landscape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ebat import energies
from ebat.classifier import Classifier
from ebat.contexts import inner_loop
from ebat.errors import CheckpointError
from ebat.metrics.accuracy import share
from ebat.metrics.wasserstein import wasserstein_distance

CLEAN, ADVERSARIAL, GENERATED = "clean", "adversarial", "generated"
SETS = (CLEAN, ADVERSARIAL, GENERATED)
ENERGIES = ("marginal", "joint")


@dataclass(frozen=True)
class EnergyPoints:
    """Where a set of images lies: E(x) and E(x, y), each float32 ``[N]`` on the CPU, in logit units."""

    marginal: Tensor
    joint: Tensor


@torch.no_grad()
def energy_points(clf: Classifier, images: Tensor, labels: Tensor, batch_size: int = 250) -> EnergyPoints:
    """Energies of images in eval mode; the classifier is left as it was.

    Args:
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``; for generated images the class that was asked for.
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
    joint = energies.joint_energy(logits, labels.to(logits.device))
    return EnergyPoints(energies.marginal_energy(logits).cpu(), joint.cpu())


def _spread(values: Tensor) -> dict[str, float]:
    low, middle, high = (float(values.quantile(q)) for q in (0.05, 0.5, 0.95))
    return {"mean": float(values.mean()), "median": middle, "p05": low, "p95": high}


def shift_summary(clean: EnergyPoints, adversarial: EnergyPoints) -> dict[str, Any]:
    """Delta energies (clean minus adversarial), their length, and the share of abnormal adversarial examples."""
    marginal, joint = clean.marginal - adversarial.marginal, clean.joint - adversarial.joint
    length = (marginal.square() + joint.square()).sqrt()
    abnormal = share(joint > marginal)
    return {
        "delta_marginal": _spread(marginal),
        "delta_joint": _spread(joint),
        "shift": _spread(length),
        "abnormal": {"value": abnormal.value, "lower": abnormal.lower, "upper": abnormal.upper},
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
                **{e: _spread(getattr(points[name], e)) for e in ENERGIES},
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
