"""From raw weights to the finished classifier: averaged weights, BatchNorm re-estimated, statistics."""

from __future__ import annotations

import copy

import torch

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import reestimate_batch_norm
from trilemma.data.image_set import ImageSet
from trilemma.updates.ema import EMA

# Batches of clean images for BatchNorm: their average moves by less than 1 % with more.
BATCHES, BATCH_SIZE = 16, 256


def averaged(clf: Classifier, ema: EMA | None) -> Classifier:
    """A copy with the averaged weights, in eval mode."""
    finished = copy.deepcopy(clf)
    if ema is not None:
        finished.load_state_dict(ema.average)
    return finished.eval()


@torch.no_grad()
def finished_classifier(clf: Classifier, ema: EMA | None, train: ImageSet, reestimate: bool) -> Classifier:
    """What evaluation reads.

    Args:
        clf: the raw training weights; left as they are.
        ema: their average, or ``None``.
        train: un-augmented training images for BatchNorm.
        reestimate: whether to re-estimate BatchNorm statistics on clean images.
    """
    finished = averaged(clf, ema)
    if reestimate:
        part = train.first(BATCHES * BATCH_SIZE)
        places = torch.arange(len(part)).split(BATCH_SIZE)
        # made one by one, and not at all for a network without BatchNorm
        batches = (part.float_images(p, device=clf.device) for p in places if len(p) > 1)
        reestimate_batch_norm(finished, finished.logits, batches)
    return finished


def is_finite(clf: Classifier) -> bool:
    """Whether every weight and buffer is: the step that breaks the weights still had a finite loss."""
    return all(bool(value.isfinite().all()) for value in clf.state_dict().values())
