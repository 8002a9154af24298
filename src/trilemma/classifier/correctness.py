"""Whether images are classified correctly, always computed in float32 and in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import autocast_off, inner_loop
from trilemma.data.image_set import as_float
from trilemma.workers import Worker, Workers, shared_out


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disables autocast and TensorFloat-32. An attack may search in lower precision; reported results may not."""
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
def evaluation_logits(clf: Classifier, images: Tensor) -> Tensor:
    """Logits ``[N, K]`` that results are computed from: in eval mode and float32, without gradient."""
    with inner_loop(clf, "eval"), full_precision(images.device):
        logits: Tensor = clf(images)
    return logits


def is_correct(clf: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is classified as its label; an image with logits that are not finite counts as wrong.

    Args:
        clf: left unchanged.
        images: float32 ``[N, C, H, W]`` in [0, 1], on the classifier's device.
        labels: int64 ``[N]``.

    Returns:
        bool ``[N]``.
    """
    logits = evaluation_logits(clf, images)
    correct: Tensor = (logits.argmax(1) == labels) & torch.isfinite(logits).all(1)
    return correct


def correct_in_batches(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
    workers: Workers | None = None,
) -> Tensor:
    """:func:`is_correct` of any number of images, in batches.

    Args:
        clf: left unchanged.
        images: ``[N, C, H, W]``, uint8 or float in [0, 1], on any device.
        labels: int64 ``[N]``, on any device.
        batch_size: images per forward pass.
        advance: called after each batch with its number of images.
        workers: processes that share the batches; by default this process computes all of them.

    Returns:
        bool ``[N]`` on the CPU.
    """
    workers = workers or Workers(clf)
    verdicts = torch.zeros(len(labels), dtype=torch.bool)
    batches = shared_out(torch.arange(len(labels)), batch_size, workers.count)
    parts = ((images[index.to(images.device)], labels[index.to(labels.device)]) for index in batches)
    for position, correct in workers.map(_correct_part, parts):
        verdicts[batches[position]] = correct
        advance(len(correct))
    return verdicts


def _correct_part(worker: Worker, images: Tensor, labels: Tensor) -> Tensor:
    """:func:`is_correct` of one batch of :func:`correct_in_batches`, on the CPU."""
    clf = worker.clf
    batch = as_float(images.to(clf.device)).float().contiguous()
    return is_correct(clf, batch, labels.to(clf.device)).cpu()
