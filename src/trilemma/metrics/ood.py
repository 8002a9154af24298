"""Out-of-distribution detection: how well a score separates images of the training distribution from others.

A higher score means in-distribution, and in-distribution images are the positive class. AUROC is the probability that
an in-distribution image has a higher score than an out-of-distribution image, with ties counted half.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trilemma import energies
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.data.image_set import as_float
from trilemma.errors import CheckpointError
from trilemma.metrics.accuracy import Z_95
from trilemma.metrics.library import torchmetrics

SCORES = ("-E(x)", "max softmax", "-|grad E(x)|")


def ood_scores(clf: Classifier, images: Tensor, batch_size: int = 250) -> dict[str, Tensor]:
    """The three scores of each image, in eval mode, from one forward and one backward pass.

    They are ``-E(x)`` (Liu et al. 2020), the largest probability (Hendrycks and Gimpel 2017), and
    ``-||grad_x E(x)||_2``, the approximate mass of JEM (Grathwohl et al. 2020, section 4.3).

    Args:
        clf: left unchanged.
        images: ``[N, C, H, W]``, uint8, or float in [0, 1].
        batch_size: images per pass.

    Returns:
        Float64 ``[N]`` on the CPU, by the names in :data:`SCORES`.

    Raises:
        CheckpointError: a score is not finite.
    """
    parts: list[list[Tensor]] = [[] for _ in SCORES]
    for part in images.split(batch_size):
        batch = as_float(part.to(clf.device))
        clf.check(batch)
        with inner_loop(clf, "eval"):
            energy, logits, gradient = Oracle(clf).gradient(batch, energies.marginal_energy)
        batch_scores = (
            -energy, logits.double().softmax(1).amax(1), -gradient.double().flatten(1).norm(dim=1)
        )  # fmt: skip
        for score_parts, score in zip(parts, batch_scores, strict=True):
            score_parts.append(score.double().cpu())
    scores = {name: torch.cat(score_parts) for name, score_parts in zip(SCORES, parts, strict=True)}
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise CheckpointError(
                f"ood: {name} is not finite for {int((~torch.isfinite(values)).sum())} of {len(values)} images; the "
                "classifier has diverged, use an earlier checkpoint"
            )
    return scores


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The probability that a score of ``inside`` is above a score of ``outside``, with ties counted half.

    Args:
        inside, outside: finite scores ``[M]`` and ``[N]``, M and N at least 1.
    """
    both = torch.cat([inside, outside])
    # torchmetrics applies a sigmoid to scores outside [0, 1], whose rounding creates ties. Ranks scaled to [0, 1] have
    # the same order and the same ties as the scores.
    levels, rank = both.unique(return_inverse=True)
    target = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))]).long()
    scaled_rank = rank.double() / max(1, len(levels) - 1)
    area = float(torchmetrics("functional.classification").binary_auroc(scaled_rank, target))
    # torchmetrics sums in float32. The exact area is a multiple of half a pair; rounding to it corrects the error
    # unless the sets are very large.
    half_pairs = 2 * len(inside) * len(outside)
    return min(1.0, round(area * half_pairs) / half_pairs)


def auroc_interval(value: float, positives: int, negatives: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of an AUROC (Newcombe 2006, method 5), ``(lower, upper)``.

    It contains all areas that differ from ``value`` by less than z of their own standard errors. The variance is that
    of Hanley and McNeil (1982) with both counts replaced by their mean. Unlike an interval from the standard error at
    ``value``, it does not shrink to a point at 1.

    Args:
        value: the estimated area, in [0, 1].
        positives, negatives: number of images of the two classes, at least 1 each.
        z: standard normal quantile; for 95 % by default.
    """
    more = (positives + negatives) / 2 - 1

    def standard_error(area: float) -> float:
        factor = 1 + more * (1 - area) / (2 - area) + more * area / (1 + area)
        return math.sqrt(area * (1 - area) * factor / (positives * negatives))

    def bound(limit: float) -> float:
        """The bound between ``value`` and ``limit`` (0 or 1), by bisection."""
        near, far = value, limit
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (middle, far) if abs(value - middle) < z * standard_error(middle) else (near, middle)
        return near

    return bound(0.0), bound(1.0)
