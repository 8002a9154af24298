"""Adversarial training on multi-step images (Madry et al. 2018)."""

from __future__ import annotations

from trilemma import energies
from trilemma.attacks import objectives
from trilemma.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.methods import options
from trilemma.methods.base import Method, MethodState, Points, Step, seen
from trilemma.methods.inner import attacked, fresh_seeds


class PgdAT(Method):
    """``L = mean CE(x*, y)``, x* from a uniform start in the ball and PGD steps up the cross-entropy."""

    Options = options.PgdAT

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        start = self.threat.random_start(x, fresh_seeds(state, x))
        return Points(x, y, **attacked(self, clf, x, start, lambda: objectives.cross_entropy(clf, y)))

    def terms(self, clf: Classifier, points: Points) -> Step:
        return adversarial_cross_entropy(clf, points)


def adversarial_cross_entropy(clf: Classifier, points: Points) -> Step:
    """``mean CE(x*, y)``, the loss of every method that trains on x* alone."""
    assert points.adversarial is not None
    logits = clf.logits(points.adversarial)
    loss = energies.cross_entropy(logits, points.labels).mean()
    return Step(loss, adversarial=seen(points.adversarial, logits), live={"adversarial": logits})
