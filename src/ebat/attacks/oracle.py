"""What an attack may ask of a classifier, and how much it has asked: forward and backward passes, counted per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebat.classifier import Classifier

# logits [n, K] to values [n]
Margin = Callable[[Tensor], Tensor]


class Oracle:
    """Logits and input gradients of a classifier; use it inside :func:`ebat.contexts.inner_loop`.

    Args:
        clf: in eval mode, its weights without gradient.

    Attributes:
        forwards, backwards: images that went through the network so far, each way.
    """

    def __init__(self, clf: Classifier) -> None:
        self.clf = clf
        self.forwards = 0
        self.backwards = 0

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[n, K]`` of images ``[n, C, H, W]``, without a graph: one forward pass each."""
        self.forwards += len(images)
        return self.clf.logits(images)

    def gradient(self, images: Tensor, values_of: Margin) -> tuple[Tensor, Tensor, Tensor]:
        """Values, logits, and the gradient of each value by its own image: one forward and one backward pass each.

        Args:
            images: ``[n, C, H, W]``.
            values_of: from logits ``[n, K]`` to values ``[n]``, row by row.

        Returns:
            ``values [n]``, ``logits [n, K]`` and ``gradient [n, C, H, W]``, all detached.
        """
        self.forwards += len(images)
        self.backwards += len(images)
        with torch.enable_grad():
            here = images.detach().requires_grad_()
            logits = self.clf.logits(here)
            values = values_of(logits)
            (gradient,) = torch.autograd.grad(values.sum(), here)
        return values.detach(), logits.detach(), gradient
