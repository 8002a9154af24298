"""The protocol ``corruptions:SET``: mean accuracy under 15 common corruptions in 5 severities."""

from __future__ import annotations

import torch

from trilemma.classifier.correctness import is_correct
from trilemma.data.corrupted_images import (
    IMAGENET_C,
    SEVERITIES,
    TYPES,
    CorruptedImages,
    MadeImages,
    open_corrupted,
)
from trilemma.data.image_set import as_float
from trilemma.evaluation.protocol import Measurement, Protocol, Request
from trilemma.metrics.accuracy import wilson_interval


def corruptions(name: str) -> Protocol:
    """The protocol ``corruptions:NAME``.

    Args:
        name: :data:`trilemma.data.corrupted_images.IMAGENET_C`, or the path of a folder of corrupted images.
    """

    def measure(request: Request) -> Measurement:
        clf, labels = request.clf, request.labels
        source: CorruptedImages
        if name == IMAGENET_C:
            source = MadeImages(request.images, labels, request.seed)
        else:
            source = open_corrupted(name, request.images, labels, clf.class_names)
        correct = torch.zeros(len(TYPES), len(SEVERITIES), dtype=torch.int64)
        for index in torch.arange(source.count).split(request.batch_size):
            for i, kind in enumerate(TYPES):
                for k, severity in enumerate(SEVERITIES):
                    images, true_labels = source.batch(kind, severity, index)
                    batch = as_float(images.to(clf.device)).float().contiguous()
                    correct[i, k] += is_correct(clf, batch, true_labels.to(clf.device)).sum().cpu()
            request.advance(len(index))
        accuracy = correct.double() / source.count
        value = float(accuracy.mean())
        return Measurement(
            value,
            source.count,
            wilson_interval(value * source.count, source.count),
            facts={
                **source.facts,
                "types": dict(zip(TYPES, accuracy.mean(1).tolist(), strict=True)),
                "severities": dict(zip(map(str, SEVERITIES), accuracy.mean(0).tolist(), strict=True)),
                "accuracy": accuracy.tolist(),
            },
            name=f"corruptions:{source.name}",
        )

    return Protocol(version=1, needs_threat=False, measure=measure)
