"""Makes the finished classifier from the training weights: weight average and re-estimated BatchNorm statistics."""

from __future__ import annotations

import copy

import torch

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import reestimate_batch_norm
from trilemma.data.image_set import ImageSet
from trilemma.updates.ema import EMA

# Batches of clean images for BatchNorm; with more of them, the average statistics change by less than 1 %.
BATCHES, BATCH_SIZE = 16, 256


def averaged_copy(clf: Classifier, ema: EMA | None) -> Classifier:
    """Returns a copy in eval mode, with the averaged weights if ``ema`` is given."""
    finished = copy.deepcopy(clf)
    if ema is not None:
        finished.load_state_dict(ema.average)
    return finished.eval()


@torch.no_grad()
def finished_classifier(clf: Classifier, ema: EMA | None, train: ImageSet, reestimate: bool) -> Classifier:
    """Returns the classifier for evaluation, in eval mode.

    Args:
        clf: the classifier in training; not changed.
        ema: average of its weights, or ``None``.
        train: training images for BatchNorm, used without augmentation.
        reestimate: whether to re-estimate BatchNorm statistics on clean images.
    """
    finished = averaged_copy(clf, ema)
    if reestimate:
        subset = train.first(BATCHES * BATCH_SIZE)
        indices = torch.arange(len(subset)).split(BATCH_SIZE)
        # A generator: batches are made one at a time, and none for a network without BatchNorm.
        batches = (subset.float_images(i, device=clf.device) for i in indices if len(i) > 1)
        reestimate_batch_norm(finished, finished.logits, batches)
    return finished


def is_finite(clf: Classifier) -> bool:
    """Returns whether all weights and buffers are finite.

    Checked in addition to the loss, because the loss of the step that makes the weights non-finite is still finite.
    """
    return all(bool(value.isfinite().all()) for value in clf.state_dict().values())
