"""preJEAT: adversarial training with the energy attack (arXiv 2108.09093)."""

from __future__ import annotations

from typing import Literal

from trilemma.classifier.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.jeat import EnergyAttackOptions, energy_attack
from trilemma.methods.pgd_at import adversarial_cross_entropy


class PreJeatOptions(EnergyAttackOptions):
    name: Literal["prejeat"] = "prejeat"


class PreJeat(Method):
    """``L = mean CE(x*, y)``, ``x* <- project(x* + a sign grad E(x*, y))``.

    It differs from PGD-AT only in the attack: ``grad CE = grad E(x, y) - grad E(x)``, and the attack ascends the first
    part alone. The paper does not specify the steps; the default is ten steps of radius / 4.
    """

    Options = PreJeatOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        adversarial = energy_attack(self, clf, batch, state)
        return Points(batch.images, batch.labels, **adversarial)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return adversarial_cross_entropy(clf, points)
