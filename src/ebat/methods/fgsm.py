"""FGSM training: one step of the radius from the clean image (Goodfellow et al. 2015)."""

from __future__ import annotations

from ebat.attacks import objectives
from ebat.classifier import Classifier
from ebat.data.batch import Batch
from ebat.methods import options
from ebat.methods.base import Method, MethodState, Points, Step
from ebat.methods.inner import attacked
from ebat.methods.pgd_at import adversarial_cross_entropy


class Fgsm(Method):
    """``L = mean CE(x*, y)``, ``x* = clip(x + eps sign grad CE(x, y))``: no random start.

    It collapses at large radii, and is here for that: remedies are tried on it.
    """

    Options = options.Fgsm

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        return Points(x, y, **attacked(self, clf, x, x, lambda: objectives.cross_entropy(clf, y)))

    def terms(self, clf: Classifier, points: Points) -> Step:
        return adversarial_cross_entropy(clf, points)
