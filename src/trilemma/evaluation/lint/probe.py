"""The classifier under suspicion: what the lint asks it, a batch at a time, and how much that was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trilemma.attacks.margins import is_wrong
from trilemma.attacks.oracle import Oracle
from trilemma.classifier import Classifier

# logits [n, K] and labels [n] to values [n]
Loss = Callable[[Tensor, Tensor], Tensor]


class Probe:
    """Logits and gradients inside :func:`trilemma.contexts.inner_loop`, at most ``batch_size`` images at a time.

    Attributes:
        oracle: counts the passes.
        connected: whether the logits have a gradient by the image at all.
    """

    def __init__(self, clf: Classifier, image: Tensor, batch_size: int) -> None:
        self.oracle = Oracle(clf, batch_size)
        with torch.enable_grad():
            self.connected = bool(clf.logits(image[:1].detach().requires_grad_()).requires_grad)
        self.oracle.passes.add(forwards=1)

    def logits(self, images: Tensor) -> Tensor:
        """``[n, K]``, without a graph."""
        return self.oracle.logits(images)

    def right(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images are classified as their label, bool ``[n]``."""
        return ~is_wrong(self.oracle.logits(images), labels)

    def gradient(self, images: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``[n]`` of ``loss``, logits ``[n, K]``, and the values' gradients; zeros where there is no graph."""
        if self.connected:
            return self.oracle.gradient(images, lambda logits: loss(logits, labels))
        logits = self.oracle.logits(images)
        return loss(logits, labels), logits, torch.zeros_like(images)


def largest(difference: Tensor) -> Tensor:
    """The largest absolute entry of each row, ``[N, ...]`` to ``[N]``."""
    return difference.abs().flatten(1).amax(1)
