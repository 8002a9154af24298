"""Standard training: cross-entropy on clean images."""

from __future__ import annotations

from typing import Literal

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.methods.base import Method, MethodState, Points, Step, detached


class StandardOptions(MethodOptions):
    name: Literal["standard"] = "standard"


class Standard(Method):
    """``L = mean CE(x, y)``."""

    Options = StandardOptions

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        logits = clf.logits(points.clean)
        loss = energies.cross_entropy(logits, points.labels).mean()
        return Step(loss, clean=detached(points.clean, logits), live={"clean": logits})
