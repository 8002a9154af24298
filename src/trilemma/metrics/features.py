"""Metrics that compare sets of images in feature space: Frechet and kernel distance, classifier score, manifold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trilemma.data.image_set import as_float
from trilemma.metrics.frechet import Extractor, frechet_distance, moments, to_levels
from trilemma.metrics.library import torchmetrics
from trilemma.metrics.manifold import NEIGHBOURS_DC, manifold

MANIFOLD = ("precision", "recall", "density", "coverage")
SPLITS = 10
SUBSETS, SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class Features:
    """Features of a set of images, float64 ``[N, D]`` on the CPU, and their class logits ``[N, K]`` or ``None``."""

    values: Tensor
    logits: Tensor | None

    def first(self, count: int) -> Features:
        """The features of the first ``count`` images."""
        return Features(self.values[:count], None if self.logits is None else self.logits[:count])

    def every(self, step: int, start: int) -> Features:
        """The features of the images ``start``, ``start + step``, ..."""
        return Features(self.values[start::step], None if self.logits is None else self.logits[start::step])


def extract(extractor: Extractor, images: Tensor, batch_size: int = 250) -> Features:
    """Features of images ``[N, C, H, W]``, uint8 or float in [0, 1]; float images are rounded to 8 bits first."""
    values, logits = [], []
    for batch in images.split(batch_size):
        levels = as_float(to_levels(batch))
        if extractor.outputs is None:
            values.append(extractor.features(levels).cpu().double())
            continue
        batch_features, batch_logits = extractor.outputs(levels)
        values.append(batch_features.cpu().double())
        logits.append(batch_logits.cpu().double())
    return Features(torch.cat(values), torch.cat(logits) if logits else None)


def metric_names(extractor: Extractor) -> dict[str, str]:
    """Display names of the metrics: FID, KID and IS for Inception only; others include the name of the extractor."""
    if extractor.inception:
        return {"frechet": "FID", "kernel": "KID", "score": "IS"}
    return {
        key: f"{short}-{extractor.name}"
        for key, short in (("frechet", "FD"), ("kernel", "KD"), ("score", "CS"))
    }


def kernel_distance(samples: Tensor, real: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy with kernel ``(x.y / D + 1)^3`` (Binkowski et al. 2018).

    For two sets of the same distribution its expected value is 0, so that it can be negative.

    Args:
        samples, real: features, ``[N, D]`` and ``[M, D]``, at least 2 each.
        generator: random-number generator for the subsets, on the CPU.

    Returns:
        Mean and standard deviation over 100 pairs of random subsets of 1,000 images, or of all if there are fewer.
    """
    discrepancy = torchmetrics("image.kid").poly_mmd
    size = min(SUBSET_SIZE, len(samples), len(real))
    discrepancies = []
    for _ in range(kernel_subsets(len(samples), len(real))):
        one, two = (part[torch.randperm(len(part), generator=generator)[:size]] for part in (real, samples))
        discrepancies.append(discrepancy(one, two))
    values = torch.stack(discrepancies)
    return float(values.mean()), float(values.std(correction=0))


def kernel_subsets(samples: int, real: int) -> int:
    """Number of pairs of subsets of :func:`kernel_distance`; 1 if a subset of each set is the whole set."""
    return 1 if min(SUBSET_SIZE, samples, real) == samples == real else SUBSETS


def classifier_score(logits: Tensor, generator: torch.Generator, splits: int = SPLITS) -> tuple[float, float]:
    """The classifier score ``exp mean_x KL(p(y|x) || p(y))``, from 1 to K.

    With Inception's logits it is the IS (Salimans et al. 2016). torchmetrics' implementation is not used, since it
    shuffles with the global random state and returns NaN if a probability underflows.

    Args:
        logits: ``[N, K]``, N at least ``splits``.
        generator: random-number generator for the splits, on the CPU.
        splits: number of random splits.

    Returns:
        Mean and standard deviation over the splits.
    """
    shuffled = logits[torch.randperm(len(logits), generator=generator)].double().log_softmax(1)
    scores = []
    for part in shuffled.chunk(splits):
        marginal = part.logsumexp(0) - torch.tensor(len(part)).double().log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std())


def feature_metrics(samples: Features, reference: Features, seed: int) -> dict[str, Any]:
    """All metrics of a set of samples against the reference; ``None`` where there are too few images or no logits.

    Args:
        samples: features of the samples.
        reference: features of the training images, in a stratified order. The manifold metrics use the first of them,
            as many as there are samples if possible.
        seed: seed of the random subsets and splits.

    Returns:
        ``count``, ``reference_count``, ``manifold_count``, ``frechet``, ``kernel``, its standard deviation over subsets
        ``kernel_std`` and the standard error of their mean ``kernel_error`` (of the choice of the subsets, not of the
        images; ``None`` if there is one subset), ``score``, ``score_std``, ``precision``, ``recall``, ``density`` and
        ``coverage``.
    """
    count = len(samples.values)
    generator = torch.Generator().manual_seed(seed)
    reference_subset = reference.first(count)
    kernel = kernel_distance(samples.values, reference.values, generator)
    subsets = kernel_subsets(count, len(reference.values))
    score: tuple[float, float] | tuple[None, None] = (None, None)
    if samples.logits is not None and count >= 2 * SPLITS:
        score = classifier_score(samples.logits, generator)
    manifold_metrics: dict[str, float] = {}
    if min(count, len(reference_subset.values)) > NEIGHBOURS_DC:
        manifold_metrics = asdict(manifold(samples.values, reference_subset.values))
    return {
        "count": count,
        "reference_count": len(reference.values),
        "manifold_count": len(reference_subset.values),
        "frechet": frechet_distance(moments(samples.values), moments(reference.values)),
        "kernel": kernel[0], "kernel_std": kernel[1],
        "kernel_error": kernel[1] / subsets**0.5 if subsets > 1 else None,
        "score": score[0], "score_std": score[1],
        **{name: manifold_metrics.get(name) for name in MANIFOLD},
    }  # fmt: skip
