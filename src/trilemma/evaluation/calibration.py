"""The protocols ``ece`` and ``ece-pgd-20``: is the confidence earned, on clean and on attacked images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.attacks import pgd
from trilemma.classifier import Classifier
from trilemma.data.image_set import as_float
from trilemma.evaluation.progress import Advance
from trilemma.evaluation.protocol import Measurement, Quantity, protocol
from trilemma.metrics.calibration import (
    Reliability,
    error_by_chance,
    probabilities,
    reliability,
)
from trilemma.threat import Threat
from trilemma.verdict import answers, right

ECE = Quantity("ECE", "lower")


@protocol(version=1, needs_threat=False, quantity=ECE)
def ece(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    seed: int,
    *,
    batch_size: int,
    advance: Advance,
) -> Measurement:
    """Expected calibration error of the largest probability, 15 bins of equal width, on the images as they are."""
    parts = []
    for batch, _ in _batches(clf, images, labels, batch_size):
        parts.append(answers(clf, batch).cpu())
        advance(len(batch))
    return _measured(torch.cat(parts), labels, seed)


@protocol(version=1, needs_threat=True, quantity=ECE)
def ece_pgd_20(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    seed: int,
    *,
    batch_size: int,
    advance: Advance,
) -> Measurement:
    """The same on the very images that ``pgd-20`` judges with this seed: a wrong image is left as it is."""
    assert threat is not None  # the runner sees to it
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for batch, truth in _batches(clf, images, labels, batch_size):
        batch = batch.clone()
        standing = right(clf, batch, truth)
        if bool(standing.any()):
            batch[standing] = pgd(
                clf, batch[standing], truth[standing], threat, steps=20, step_size=threat.epsilon / 4,
                generator=generator,
            )  # fmt: skip
        parts.append(answers(clf, batch).cpu())
        advance(len(batch))
    return _measured(torch.cat(parts), labels, seed)


def _batches(clf: Classifier, images: Tensor, labels: Tensor, batch_size: int) -> Any:
    for places in torch.arange(len(labels)).split(batch_size):
        yield as_float(images[places].to(clf.device)), labels[places].to(clf.device)


def _measured(logits: Tensor, labels: Tensor, seed: int) -> Measurement:
    """The error without an interval: resampling would add the very noise that the estimate already counts as error."""
    shares = probabilities(logits)
    found = reliability(shares, labels)
    chance = error_by_chance(shares, torch.Generator().manual_seed(seed))
    right_share = float((shares.argmax(1) == labels).double().mean())
    return Measurement(
        found.error,
        len(labels),
        also={"by chance": chance, "accuracy": right_share, "mean confidence": float(shares.amax(1).mean())},
        facts={"bins": bin_rows(found)},
    )


def bin_rows(found: Reliability) -> list[dict[str, float | int | None]]:
    """One JSON-like row per bin: ``count``, and mean ``confidence`` and ``accuracy``, ``None`` where it is empty."""
    return [
        {
            "count": int(count),
            "confidence": float(confidence) if count else None,
            "accuracy": float(accuracy) if count else None,
        }
        for count, confidence, accuracy in zip(found.count, found.confidence, found.accuracy, strict=True)
    ]
