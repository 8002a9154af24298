"""The scale of the logits: the factor with which their softmax fits the labels best (Guo et al. 2017)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

# Factors that are tried: powers of ten with these exponents, then STEPS per power of ten around the best of them. The
# cross-entropy is a convex function of the factor.
SMALLEST, LARGEST, STEPS = -7, 9, 20
# A factor counts if it lowers the cross-entropy by at least so many nats.
GAIN = 0.02


# A scale is off from these factors on, at an accuracy of at least: the less accurate a network is, the smaller its
# logits may be. Of 60 networks of 9 kinds of training, accurate ones needed factors from 1 to 5, others up to 11.
SQUASHED = ((0.9, 5.0), (0.7, 12.0), (0.0, 500.0))
SATURATED = 1 / 3


def missing_factor(logits: Tensor, labels: Tensor) -> float:
    """:func:`best_factor` if it is further from 1 than the training of a network explains; else 1."""
    factor = best_factor(logits, labels)
    accuracy = float((logits.argmax(1) == labels).double().mean())
    small = any(accuracy >= least and factor >= off for least, off in SQUASHED)
    return factor if small or factor <= SATURATED else 1.0


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

    power = min(range(SMALLEST, LARGEST + 1), key=lambda exponent: loss(10.0**exponent))
    best = min((10 ** (power + step / STEPS) for step in range(-STEPS, STEPS + 1)), key=loss)
    return best if loss(1.0) - loss(best) >= GAIN else 1.0
