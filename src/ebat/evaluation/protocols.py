"""The protocols of the first day: ``clean`` and ``pgd-20``."""

from __future__ import annotations

import torch
from torch import Tensor

from ebat.attacks import pgd
from ebat.classifier import Classifier
from ebat.data.image_set import as_float
from ebat.evaluation.progress import Advance
from ebat.evaluation.protocol import Verdicts, protocol
from ebat.evaluation.verdict import right
from ebat.threat import Threat

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
    return Verdicts(_clean(clf, images, labels, batch_size, advance))


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
    """Cross-entropy, 20 steps of a quarter of the radius, one random start (EVALUATION, section 1).

    An image that is wrong without any attack counts as broken and is not attacked.
    """
    assert threat is not None  # the runner sees to it
    verdicts = _clean(clf, images, labels, batch_size, lambda _: None)
    standing = verdicts.nonzero().squeeze(1)
    advance(len(labels) - len(standing))
    generator = torch.Generator().manual_seed(seed)
    for places in standing.split(batch_size):
        batch, truth = as_float(images[places].to(clf.device)), labels[places].to(clf.device)
        reached = pgd(clf, batch, truth, threat, steps=20, step_size=threat.epsilon / 4, generator=generator)
        outside = ~threat.contains(reached, batch, BALL_TOLERANCE)
        if bool(outside.any()):
            raise RuntimeError(
                f"pgd-20: {int(outside.sum())} adversarial images lie outside {threat} or [0, 1]; a bug"
            )
        verdicts[places] = right(clf, reached, truth).cpu()
        advance(len(places))
    return Verdicts(verdicts, {"attacked": len(standing)})


def _clean(clf: Classifier, images: Tensor, labels: Tensor, batch_size: int, advance: Advance) -> Tensor:
    """Verdicts on the images as they are, bool ``[N]`` on the CPU."""
    verdicts = torch.zeros(len(labels), dtype=torch.bool)
    for places in torch.arange(len(labels)).split(batch_size):
        batch = as_float(images[places].to(clf.device))
        verdicts[places] = right(clf, batch, labels[places].to(clf.device)).cpu()
        advance(len(places))
    return verdicts
