"""The protocols ``ece`` and ``ece-pgd-20``: calibration error on clean and on attacked images."""

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
    """Expected calibration error of the largest probability, 15 bins of equal width, on clean images."""
    parts = []
    for batch, _ in request.batches():
        parts.append(evaluation_logits(request.clf, batch).cpu())
        request.advance(len(batch))
    return _measured(torch.cat(parts), request.labels, request.seed)


@protocol(version=1, needs_threat=True, quantity=ECE)
def ece_pgd_20(request: Request) -> Measurement:
    """Expected calibration error on the adversarial images of ``pgd-20`` with the same seed.

    Images that are misclassified without any attack are not attacked.
    """
    clf, threat = request.clf, request.required_threat
    generator = torch.Generator().manual_seed(request.seed)
    parts = []
    for batch, labels in request.batches():
        batch = batch.clone()
        correct = is_correct(clf, batch, labels)
        if bool(correct.any()):
            batch[correct] = pgd(
                clf, batch[correct], labels[correct], threat, steps=20, step_size=threat.epsilon / 4,
                generator=generator,
            )  # fmt: skip
        parts.append(evaluation_logits(clf, batch).cpu())
        request.advance(len(batch))
    return _measured(torch.cat(parts), request.labels, request.seed)


def _measured(logits: Tensor, labels: Tensor, seed: int) -> Measurement:
    """Calibration error of ``logits``, without an interval.

    A bootstrap would add the sampling noise a second time: the estimate already counts it as error.
    """
    class_probabilities = probabilities(logits)
    bins = reliability(class_probabilities, labels)
    chance = error_by_chance(class_probabilities, torch.Generator().manual_seed(seed))
    accuracy = float((class_probabilities.argmax(1) == labels).double().mean())
    return Measurement(
        bins.error,
        len(labels),
        also={
            "by chance": chance,
            "accuracy": accuracy,
            "mean confidence": float(class_probabilities.amax(1).mean()),
        },
        facts={"bins": bin_records(bins)},
    )


def bin_records(bins: Reliability) -> list[dict[str, float | int | None]]:
    """One JSON-like record per bin: ``count``, mean ``confidence`` and ``accuracy``, the means ``None`` if empty."""
    return [
        {
            "count": int(count),
            "confidence": float(confidence) if count else None,
            "accuracy": float(accuracy) if count else None,
        }
        for count, confidence, accuracy in zip(bins.count, bins.confidence, bins.accuracy, strict=True)
    ]
