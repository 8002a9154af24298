"""PGD-AT: adversarial training on images of a multi-step attack (Madry et al. 2018)."""

from __future__ import annotations

from typing import ClassVar, Literal

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step, detached
from trilemma.methods.inner import attacked, fresh_seeds
from trilemma.walks import objectives


class PgdATOptions(MethodOptions):
    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["pgd-at"] = "pgd-at"


class PgdAT(Method):
    """``L = mean CE(x*, y)``, x* from a uniform start in the ball and PGD steps up the cross-entropy."""

    Options = PgdATOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        start = self.threat.random_start(x, fresh_seeds(state, x))
        return Points(x, y, **attacked(self, clf, x, start, lambda: objectives.cross_entropy(clf, y)))

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return adversarial_cross_entropy(clf, points)


def adversarial_cross_entropy(clf: Classifier, points: Points) -> Step:
    """Returns the step of ``L = mean CE(x*, y)``, the loss of every method that trains on x* alone."""
    assert points.adversarial is not None
    logits = clf.logits(points.adversarial)
    loss = energies.cross_entropy(logits, points.labels).mean()
    return Step(loss, adversarial=detached(points.adversarial, logits), live={"adversarial": logits})
