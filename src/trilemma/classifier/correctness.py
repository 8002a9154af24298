"""The verdict on an image: right or wrong, always in float32 and in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import autocast_off, inner_loop
from trilemma.data.image_set import as_float


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, no autocast and no TensorFloat-32: a search may be coarse, what is counted may not."""
    with autocast_off(device):
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


def right_in_batches(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """:func:`right` of any number of images, uint8 or float, wherever they are held. Bool ``[N]`` on the CPU.

    ``advance`` is told of finished images.
    """
    verdicts = torch.zeros(len(labels), dtype=torch.bool)
    for places in torch.arange(len(labels)).split(batch_size):
        batch = as_float(images[places.to(images.device)].to(clf.device)).float().contiguous()
        verdicts[places] = right(clf, batch, labels[places.to(labels.device)].to(clf.device)).cpu()
        advance(len(places))
    return verdicts
