"""Sets of images compared in the features of one extractor: Frechet and kernel distance, score, manifold."""

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
    """Features of a set of images, float64 ``[N, D]`` on the CPU, and its class logits ``[N, K]`` or ``None``."""

    values: Tensor
    logits: Tensor | None

    def first(self, count: int) -> Features:
        """Those of the first images."""
        return Features(self.values[:count], None if self.logits is None else self.logits[:count])


def extract(extractor: Extractor, images: Tensor, batch_size: int = 250) -> Features:
    """Features of images, uint8 or float in [0, 1], ``[N, C, H, W]``; float ones are rounded to 8 bits first."""
    values, logits = [], []
    for batch in images.split(batch_size):
        levels = as_float(to_levels(batch))
        if extractor.outputs is None:
            values.append(extractor.features(levels).cpu().double())
            continue
        found, said = extractor.outputs(levels)
        values.append(found.cpu().double())
        logits.append(said.cpu().double())
    return Features(torch.cat(values), torch.cat(logits) if logits else None)


def figure_names(extractor: Extractor) -> dict[str, str]:
    """What the figures are called: FID, KID and IS are Inception's alone, other extractors' carry their names."""
    if extractor.inception:
        return {"frechet": "FID", "kernel": "KID", "score": "IS"}
    return {
        key: f"{short}-{extractor.name}"
        for key, short in (("frechet", "FD"), ("kernel", "KD"), ("score", "CS"))
    }


def kernel_distance(samples: Tensor, real: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy under ``(x.y / D + 1)^3`` (Binkowski et al. 2018).

    The mean over 100 pairs of random subsets of 1,000, or as many as there are, and their standard deviation. It is 0
    on average for sets of one distribution, so that it may be negative.

    Args:
        samples, real: features, ``[N, D]`` and ``[M, D]``, at least 2 each.
        generator: of the subsets, on the CPU.
    """
    discrepancy = torchmetrics("image.kid").poly_mmd
    size = min(SUBSET_SIZE, len(samples), len(real))
    whole = size == len(samples) == len(real)
    found = []
    for _ in range(1 if whole else SUBSETS):
        one, two = (part[torch.randperm(len(part), generator=generator)[:size]] for part in (real, samples))
        found.append(discrepancy(one, two))
    values = torch.stack(found)
    return float(values.mean()), float(values.std(correction=0))


def classifier_score(logits: Tensor, generator: torch.Generator, splits: int = SPLITS) -> tuple[float, float]:
    """``exp mean_x KL(p(y|x) || p(y))``, from 1 to K: mean and standard deviation over random splits.

    With Inception's logits it is the IS (Salimans et al. 2016). Written here because torchmetrics shuffles by the
    global random state and gives NaN where a probability underflows.

    Args:
        logits: ``[N, K]``, N at least ``splits``.
        generator: of the splits, on the CPU.
    """
    shuffled = logits[torch.randperm(len(logits), generator=generator)].double().log_softmax(1)
    scores = []
    for part in shuffled.chunk(splits):
        marginal = part.logsumexp(0) - torch.tensor(len(part)).double().log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std())


def feature_figures(found: Features, reference: Features, seed: int) -> dict[str, Any]:
    """All figures of one set against the reference; those that too few images or no classes forbid are ``None``.

    Args:
        found: of the samples.
        reference: of the training images, in a stratified order: the manifolds take the first as many as there are
            samples, so that both sides are equal, or all of them.
        seed: of subsets and splits.

    Returns:
        ``count``, ``reference_count``, ``manifold_count``, ``frechet``, ``kernel``, ``kernel_std``, ``score``,
        ``score_std``, ``precision``, ``recall``, ``density`` and ``coverage``.
    """
    count = len(found.values)
    generator = torch.Generator().manual_seed(seed)
    equal = reference.first(count)
    kernel = kernel_distance(found.values, reference.values, generator)
    enough = found.logits is not None and count >= 2 * SPLITS
    score = classifier_score(found.logits, generator) if found.logits is not None and enough else (None, None)
    lies = (
        asdict(manifold(found.values, equal.values)) if min(count, len(equal.values)) > NEIGHBOURS_DC else {}
    )
    return {
        "count": count,
        "reference_count": len(reference.values),
        "manifold_count": len(equal.values),
        "frechet": frechet_distance(moments(found.values), moments(reference.values)),
        "kernel": kernel[0], "kernel_std": kernel[1],
        "score": score[0], "score_std": score[1],
        **{name: lies.get(name) for name in MANIFOLD},
    }  # fmt: skip
