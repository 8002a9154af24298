"""Losses that attacks maximise, as functions of the logits; a higher value means closer to misclassification."""

from __future__ import annotations

import torch
from torch import Tensor

# Added to denominators, which are zero where logits are equal.
_TINY = 1e-12


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is misclassified or has a logit that is not finite, bool ``[N]``."""
    return (logits.argmax(1) != labels) | ~torch.isfinite(logits).all(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin ``max_{i != y} z_i - z_y``, ``[N]``; positive if the image is misclassified.

    Args:
        logits: ``[N, K]``.
        labels: int64 ``[N]``.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - _logit_of(logits, labels)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The margin ``z_t - z_y`` of a target class, ``[N]``; defined for any number of classes."""
    return _logit_of(logits, targets) - _logit_of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio ``(max_{i != y} z_i - z_y) / (z_(1) - z_(3))``, ``[N]``; needs 3 classes.

    ``z_(k)`` is the k-th largest logit. Unlike the cross-entropy it is invariant to shifting or scaling all logits
    (Croce and Hein 2020, arXiv 2003.01690, eq. 6).
    """
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, labels) / (first - third + _TINY)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted DLR ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)``, ``[N]``; needs 4 classes (2003.01690, eq. 7)."""
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return targeted_margin(logits, labels, targets) / (first - (third + fourth) / 2 + _TINY)


def likeliest_others(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The ``count`` classes with the highest logits except the label, highest first, int64 ``[N, count]``."""
    return logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices


def _logit_of(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit of one class per image, ``[N]``."""
    return logits.gather(1, classes[:, None]).squeeze(1)
