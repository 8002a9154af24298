"""Functions of logits, row by row, that attacks climb: higher is nearer to a wrong class, or deeper in it."""

from __future__ import annotations

import torch
from torch import Tensor

# Keeps the scaled losses finite where the logits of their denominator are equal.
_TINY = 1e-12


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the classifier says another class than ``labels``, or nothing finite. Bool ``[N]``."""
    return (logits.argmax(1) != labels) | ~torch.isfinite(logits).all(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``max_{i != y} z_i - z_y``, ``[N]``: above 0 where the image is misclassified.

    Args:
        logits: ``[N, K]``.
        labels: int64 ``[N]``.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - _of(logits, labels)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``z_t - z_y``, ``[N]``: defined for any number of classes."""
    return _of(logits, targets) - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """``(max_{i != y} z_i - z_y) / (z_(1) - z_(3))``, ``[N]``; ``z_(k)`` is the k-th largest logit.

    Difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690, eq. 6): unlike the cross-entropy it does not
    change when all logits are shifted or scaled. Needs 3 classes.
    """
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, labels) / (first - third + _TINY)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)``, ``[N]`` (arXiv 2003.01690, eq. 7). Needs 4 classes."""
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return targeted_margin(logits, labels, targets) / (first - (third + fourth) / 2 + _TINY)


def likeliest_others(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The ``count`` classes of highest logit beside the label, best first, int64 ``[N, count]``."""
    return logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)
