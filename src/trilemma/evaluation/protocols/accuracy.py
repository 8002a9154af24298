"""The quick protocols: ``clean``, ``pgd-20`` and ``pgd-50-10``."""

from __future__ import annotations

from typing import Any

import torch

from trilemma.attacks import pgd
from trilemma.classifier.correctness import right, right_in_batches
from trilemma.data.image_set import as_float
from trilemma.evaluation.protocol import Request, Verdicts, protocol

# Rounding of clean + delta in float32, summed over an image; an attack's mistake is far larger.
BALL_TOLERANCE = 1e-5


@protocol(version=1, needs_threat=False)
def clean(request: Request) -> Verdicts:
    """Accuracy on the images as they are."""
    return Verdicts(
        right_in_batches(request.clf, request.images, request.labels, request.batch_size, request.advance)
    )


@protocol(version=1, needs_threat=True)
def pgd_20(request: Request) -> Verdicts:
    """Cross-entropy, 20 steps of a quarter of the radius, one random start.

    An image that is misclassified without any attack counts as broken and is not attacked.
    """
    return _pgd("pgd-20", request, steps=20, restarts=1)


@protocol(version=1, needs_threat=True)
def pgd_50_10(request: Request) -> Verdicts:
    """Cross-entropy, 50 steps of a quarter of the radius, the worst of 10 random starts.

    An image that one start breaks is broken; the starts after it are for the others only.
    """
    return _pgd("pgd-50-10", request, steps=50, restarts=10)


def _pgd(name: str, request: Request, steps: int, restarts: int) -> Verdicts:
    """Walk after walk up the cross-entropy, each for the images that are still classified correctly.

    Restarts run one after the other over all images, not within a batch, so that the random numbers of an image do
    not depend on the batch size.
    """
    clf, images, labels, threat = request.clf, request.images, request.labels, request.ball
    verdicts = right_in_batches(clf, images, labels, request.batch_size)
    standing = verdicts.nonzero().squeeze(1)
    facts: dict[str, Any] = {"attacked": len(standing)}
    request.advance(len(labels) - len(standing))
    generator = torch.Generator().manual_seed(request.seed)
    left = []
    for restart in range(restarts):
        for places in standing.split(request.batch_size) if len(standing) else ():
            batch, truth = as_float(images[places].to(clf.device)), labels[places].to(clf.device)
            reached = pgd(
                clf, batch, truth, threat, steps=steps, step_size=threat.epsilon / 4, generator=generator
            )
            outside = ~threat.contains(reached, batch, BALL_TOLERANCE)
            if bool(outside.any()):
                raise RuntimeError(
                    f"{name}: {int(outside.sum())} adversarial images lie outside {threat} or [0, 1]; a bug"
                )
            verdicts[places] = right(clf, reached, truth).cpu()
            request.advance(len(places) if restart == restarts - 1 else int((~verdicts[places]).sum()))
        standing = verdicts.nonzero().squeeze(1)
        left.append(len(standing))
    return Verdicts(verdicts, facts if restarts == 1 else facts | {"standing": left})
