"""The verdict on an image: right or wrong, always in float32 and in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ebat.classifier import Classifier
from ebat.contexts import inner_loop


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, no autocast and no TensorFloat-32: a search may be coarse, what is counted may not."""
    with torch.autocast(device.type, enabled=False):
        if device.type == "cuda":
            before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            try:
                yield
            finally:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        else:
            yield


@torch.no_grad()
def answers(clf: Classifier, images: Tensor) -> Tensor:
    """The logits that count: of the classifier itself, in eval mode and in float32. ``[N, K]``."""
    with inner_loop(clf, "eval"), full_precision(images.device):
        logits: Tensor = clf(images)
    return logits


def right(clf: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is classified as its label; logits that are not finite count as wrong.

    Args:
        images: float32 ``[N, C, H, W]`` in [0, 1], on the classifier's device.
        labels: int64 ``[N]``.

    Returns:
        bool ``[N]``.
    """
    logits = answers(clf, images)
    found: Tensor = (logits.argmax(1) == labels) & torch.isfinite(logits).all(1)
    return found
