"""The protocols ``ece`` and ``ece-pgd-20``: is the confidence earned, on clean and on attacked images."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.attacks import pgd
from trilemma.classifier.correctness import evaluation_logits, is_correct
from trilemma.evaluation.protocol import Measurement, Quantity, Request, protocol
from trilemma.metrics.calibration import Reliability, error_by_chance, probabilities, reliability

ECE = Quantity("ECE", "lower")


@protocol(version=1, needs_threat=False, quantity=ECE)
def ece(request: Request) -> Measurement:
    """Expected calibration error of the largest probability, 15 bins of equal width, on the images as they are."""
    parts = []
    for batch, _ in request.batches():
        parts.append(evaluation_logits(request.clf, batch).cpu())
        request.advance(len(batch))
    return _measured(torch.cat(parts), request.labels, request.seed)


@protocol(version=1, needs_threat=True, quantity=ECE)
def ece_pgd_20(request: Request) -> Measurement:
    """The same on the images that ``pgd-20`` judges with this seed: a misclassified image is left as it is."""
    clf, threat = request.clf, request.ball
    generator = torch.Generator().manual_seed(request.seed)
    parts = []
    for batch, truth in request.batches():
        batch = batch.clone()
        standing = is_correct(clf, batch, truth)
        if bool(standing.any()):
            batch[standing] = pgd(
                clf, batch[standing], truth[standing], threat, steps=20, step_size=threat.epsilon / 4,
                generator=generator,
            )  # fmt: skip
        parts.append(evaluation_logits(clf, batch).cpu())
        request.advance(len(batch))
    return _measured(torch.cat(parts), request.labels, request.seed)


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
