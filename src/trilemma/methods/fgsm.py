"""FGSM training: one step of the radius from the clean image (Goodfellow et al. 2015)."""

from __future__ import annotations

from trilemma.attacks import objectives
from trilemma.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.methods import options
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.inner import attacked
from trilemma.methods.pgd_at import adversarial_cross_entropy


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
