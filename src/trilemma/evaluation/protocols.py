"""The quick protocols: ``clean``, ``pgd-20`` and ``pgd-50-10``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.attacks import pgd
from trilemma.classifier import Classifier
from trilemma.data.image_set import as_float
from trilemma.evaluation.progress import Advance
from trilemma.evaluation.protocol import Verdicts, protocol
from trilemma.threat import Threat
from trilemma.verdict import right, right_in_batches

# Rounding of clean + delta in float32, summed over an image; an attack's mistake is far larger.
BALL_TOLERANCE = 1e-5


@protocol(version=1, needs_threat=False)
def clean(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    seed: int,
    *,
    batch_size: int,
    advance: Advance,
) -> Verdicts:
    """Accuracy on the images as they are."""
    return Verdicts(right_in_batches(clf, images, labels, batch_size, advance))


@protocol(version=1, needs_threat=True)
def pgd_20(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    seed: int,
    *,
    batch_size: int,
    advance: Advance,
) -> Verdicts:
    """Cross-entropy, 20 steps of a quarter of the radius, one random start.

    An image that is wrong without any attack counts as broken and is not attacked.
    """
    assert threat is not None  # the runner sees to it
    return _pgd("pgd-20", clf, images, labels, threat, seed, 20, 1, batch_size, advance)


@protocol(version=1, needs_threat=True)
def pgd_50_10(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    seed: int,
    *,
    batch_size: int,
    advance: Advance,
) -> Verdicts:
    """Cross-entropy, 50 steps of a quarter of the radius, the worst of 10 random starts.

    An image that one start breaks is broken; the starts after it are for the others only.
    """
    assert threat is not None  # the runner sees to it
    return _pgd("pgd-50-10", clf, images, labels, threat, seed, 50, 10, batch_size, advance)


def _pgd(
    name: str,
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    steps: int,
    restarts: int,
    batch_size: int,
    advance: Advance,
) -> Verdicts:
    """Walk after walk up the cross-entropy, each for the images that are still right.

    Restarts run one after the other over all images, not within a batch, so that the random numbers of an image do
    not depend on ``batch_size``.
    """
    verdicts = right_in_batches(clf, images, labels, batch_size)
    standing = verdicts.nonzero().squeeze(1)
    facts: dict[str, Any] = {"attacked": len(standing)}
    advance(len(labels) - len(standing))
    generator = torch.Generator().manual_seed(seed)
    left = []
    for restart in range(restarts):
        for places in standing.split(batch_size) if len(standing) else ():
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
            done = len(places) if restart == restarts - 1 else int((~verdicts[places]).sum())
            advance(done)
        standing = verdicts.nonzero().squeeze(1)
        left.append(len(standing))
    return Verdicts(verdicts, facts if restarts == 1 else facts | {"standing": left})
