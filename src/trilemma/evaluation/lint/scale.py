"""The scale of the logits: the factor with which their softmax fits the labels best (Guo et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# Factors that are tried, 20 per power of ten.
SMALLEST, LARGEST, PER_TEN = -7, 9, 20
# A factor counts if it lowers the cross-entropy by at least so many nats.
GAIN = 0.02


def best_factor(logits: Tensor, labels: Tensor) -> float:
    """The factor of the logits with the lowest cross-entropy; 1 if the logits as they are fit about as well.

    One image more than were seen is assumed to have another label, since any factor fits images that are all correct.

    Args:
        logits: finite, ``[N, K]``, K at least 2.
        labels: int64 ``[N]``.
    """
    logits = logits.double()
    smoothing = logits.shape[1] / (logits.shape[1] - 1) / (len(labels) + 1)

    def loss(factor: float) -> float:
        return float(cross_entropy(factor * logits, labels, label_smoothing=smoothing))

    factors = torch.logspace(
        SMALLEST, LARGEST, PER_TEN * (LARGEST - SMALLEST) + 1, dtype=torch.float64
    ).tolist()
    best = min(factors, key=loss)
    return best if loss(1.0) - loss(best) >= GAIN else 1.0
