"""The protocols ``classes``, accuracy by class with the confusion matrix, and ``top:K``, the label among K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.correctness import evaluation_logits
from trilemma.errors import ConfigError
from trilemma.evaluation.protocol import Measurement, Protocol, Quantity, Request, Verdicts, protocol
from trilemma.metrics.accuracy import answered_classes, chance, confusion, rank, wilson_interval

BALANCED = Quantity("balanced accuracy", "higher")
# With more classes than this a row has no confusion matrix, which grows with their square, and only so many classes.
MAX_CLASSES = 100
# Number of confused pairs of classes, and of classes in the note, that a row names.
PAIRS, WORST = 10, 3


@protocol(version=1, needs_threat=False, quantity=BALANCED)
def classes(request: Request) -> Measurement:
    """Balanced accuracy: the mean accuracy of the classes that have images, without any attack.

    ``facts`` has the accuracy of each class with its interval, and the confusion matrix.
    """
    parts = []
    for batch, _ in request.batches():
        parts.append(answered_classes(evaluation_logits(request.clf, batch)).cpu())
        request.advance(len(batch))
    return classes_measurement(torch.cat(parts), request.labels, request.clf.class_names)


def classes_measurement(answers: Tensor, labels: Tensor, class_names: Sequence[str]) -> Measurement:
    """The measurement of ``classes``.

    Args:
        answers: the answered class of each image, int64 ``[N]``; -1 for none.
        labels: int64 ``[N]``.
        class_names: names of all K classes.
    """
    matrix = confusion(answers, labels, len(class_names))
    counts, correct = labels.bincount(minlength=len(class_names)), matrix.diagonal()
    present = counts.nonzero().squeeze(1)
    accuracies = correct[present] / counts[present]
    worst_first = present[accuracies.argsort(stable=True)].tolist()
    by_class = {k: _class_record(k, int(correct[k]), int(counts[k])) for k in worst_first}
    few = len(class_names) <= MAX_CLASSES
    listed = sorted(worst_first) if few else worst_first[:MAX_CLASSES]
    facts: dict[str, Any] = {
        "note": "lowest: "
        + ", ".join(
            f"{class_names[k]} {by_class[k]['value']:.1%} of {by_class[k]['count']}"
            for k in worst_first[:WORST]
        ),
        "class_names": list(class_names),
        "per_class": [by_class[k] for k in listed],
        "most_confused": _most_confused(matrix),
        "not_finite": int((answers < 0).sum()),
    }
    if few:
        facts["confusion"] = matrix.tolist()
    return Measurement(
        float(accuracies.double().mean()),
        len(labels),
        also={"worst class": float(accuracies.min()), "accuracy": float(correct.sum() / len(labels))},
        facts=facts,
        chance=1 / len(present),
    )


def _class_record(number: int, correct: int, count: int) -> dict[str, Any]:
    lower, upper = wilson_interval(correct, count)
    return {"class": number, "value": correct / count, "lower": lower, "upper": upper, "count": count}


def _most_confused(matrix: Tensor) -> list[dict[str, int]]:
    """The most frequent pairs of a true class and another answer, most frequent first."""
    off_diagonal = matrix - matrix.diagonal().diag()
    pairs = off_diagonal.flatten().sort(descending=True, stable=True)
    return [
        {"true": index // len(matrix), "answer": index % len(matrix), "count": count}
        for count, index in zip(pairs.values[:PAIRS].tolist(), pairs.indices[:PAIRS].tolist(), strict=True)
        if count
    ]


def top(value: str) -> Protocol:
    """The protocol ``top:K``: the share of images whose label is among the K classes with the largest logits.

    Of equal logits the first classes count, as in ``clean``, which is ``top:1``.

    Raises:
        ConfigError: K is not a whole number of at least 1; or, for a classifier, not below its number of classes.
    """
    if not (value.isascii() and value.isdigit() and value == str(int(value)) and int(value) >= 1):
        raise ConfigError(f"top:{value}: K must be a whole number of at least 1, as in top:5")
    count = int(value)

    def check(clf: Classifier) -> None:
        if count >= clf.num_classes:
            raise ConfigError(
                f"top:{count}: every answer is right for {clf.num_classes} classes; use a K below that"
            )

    def measure(request: Request) -> Verdicts:
        parts = []
        for batch, labels in request.batches():
            logits = evaluation_logits(request.clf, batch)
            parts.append((rank(logits, labels) < count).cpu() & torch.isfinite(logits).all(1).cpu())
            request.advance(len(batch))
        return Verdicts(torch.cat(parts), chance=chance(request.labels, count))

    return Protocol(version=1, needs_threat=False, measure=measure, check_classifier=check)
