"""Out-of-distribution detection: how well a score tells images of the training distribution from others.

Every score is higher for an image that the classifier takes for one of its distribution; in-distribution images are the
positive class. AUROC is then the chance that such an image scores higher than one from outside, ties counted half.
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
    """The three scores of each image, in eval mode; one forward and one backward pass serve all of them.

    ``-E(x)`` (Liu et al. 2020), the largest probability (Hendrycks and Gimpel 2017), and ``-||grad_x E(x)||_2``, the
    approximate mass of JEM (Grathwohl et al. 2020, section 4.3).

    Args:
        clf: left exactly as it was.
        images: uint8, or float in [0, 1], ``[N, C, H, W]``.
        batch_size: images per pass.

    Returns:
        By the names of :data:`SCORES`, float64 ``[N]`` on the CPU.

    Raises:
        CheckpointError: a score that is not finite.
    """
    parts: list[list[Tensor]] = [[] for _ in SCORES]
    for part in images.split(batch_size):
        batch = as_float(part.to(clf.device))
        clf.check(batch)
        with inner_loop(clf, "eval"):
            energy, logits, gradient = Oracle(clf).gradient(batch, energies.marginal_energy)
        found = (-energy, logits.double().softmax(1).amax(1), -gradient.double().flatten(1).norm(dim=1))
        for kept, score in zip(parts, found, strict=True):
            kept.append(score.double().cpu())
    scores = {name: torch.cat(kept) for name, kept in zip(SCORES, parts, strict=True)}
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise CheckpointError(
                f"ood: {name} is not finite for {int((~torch.isfinite(values)).sum())} of {len(values)} images; this "
                "classifier has diverged, use an earlier checkpoint"
            )
    return scores


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The chance that a score from ``inside`` is above one from ``outside``; ties count half.

    Args:
        inside, outside: finite scores ``[M]`` and ``[N]``, each at least one.
    """
    both = torch.cat([inside, outside])
    # torchmetrics passes scores beyond [0, 1] through a sigmoid, which makes ties; ranks keep order and ties.
    levels, rank = both.unique(return_inverse=True)
    target = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))]).long()
    share = rank.double() / max(1, len(levels) - 1)
    found = float(torchmetrics("functional.classification").binary_auroc(share, target))
    # It sums in float32. The area is a whole number of half pairs, which undoes the rounding of all but huge sets.
    halves = 2 * len(inside) * len(outside)
    return min(1.0, round(found * halves) / halves)


def auroc_interval(value: float, positives: int, negatives: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of an AUROC (Newcombe 2006, method 5): all areas that the found one is within z errors of.

    Wilson's idea with the variance of Hanley and McNeil (1982), both counts replaced by their mean. Unlike an interval
    from the spread of the scores it does not shrink to a point at 1.

    Args:
        value: the area found, in [0, 1].
        positives, negatives: images on either side, at least 1 each.
    """
    more = (positives + negatives) / 2 - 1

    def error(area: float) -> float:
        spread = 1 + more * (1 - area) / (2 - area) + more * area / (1 + area)
        return math.sqrt(area * (1 - area) * spread / (positives * negatives))

    def edge(side: float) -> float:
        """Halving the span between the area found and the end on ``side``."""
        near, far = value, side
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (middle, far) if abs(value - middle) < z * error(middle) else (near, middle)
        return near

    return edge(0.0), edge(1.0)
