"""Standard training: ``CE(x)``."""

from __future__ import annotations

from trilemma import energies
from trilemma.classifier import Classifier
from trilemma.methods import options
from trilemma.methods.base import Method, Points, Step, seen


class Standard(Method):
    """``L = mean CE(x, y)``."""

    Options = options.Standard

    def terms(self, clf: Classifier, points: Points) -> Step:
        logits = clf.logits(points.clean)
        loss = energies.cross_entropy(logits, points.labels).mean()
        return Step(loss, clean=seen(points.clean, logits), live={"clean": logits})
