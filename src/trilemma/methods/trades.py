"""TRADES: clean cross-entropy plus the divergence between clean and adversarial predictions (Zhang et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import attacked, nearby_start
from trilemma.walks import objectives
from trilemma.walks.walk import Objective


class TradesOptions(MethodOptions):
    image_sets: ClassVar[int] = 2
    extra_forwards: ClassVar[int] = 1
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["trades"] = "trades"
    beta: NonNegativeFloat = Field(6.0, description="weight of the KL term")


class Trades(Method):
    """``L = mean [CE(x, y) + beta KL(f(x) || f(x*))]``; x* ascends the KL from ``x + 0.001 n``.

    In energies, ``KL = E_{k~p(.|x)}[E(x*, k) - E(x, k)] + dE(x)``. The gradient goes through both arguments of the KL.
    """

    Options: ClassVar[type[MethodOptions]] = TradesOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels

        def objective() -> Objective:
            with torch.no_grad():
                return objectives.divergence(clf, clf.logits(x))

        return Points(x, y, **attacked(self, clf, x, nearby_start(state, x), objective))

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None
        clean_logits, adversarial_logits = forward_sets(clf, points.clean, points.adversarial)
        natural = energies.cross_entropy(clean_logits, points.labels).mean()
        divergence = energies.kl_divergence(clean_logits, adversarial_logits).mean()
        return Step(
            natural + self.options.beta * divergence,
            clean=detached(points.clean, clean_logits),
            adversarial=detached(points.adversarial, adversarial_logits),
            metrics={"natural": natural.detach(), "divergence": divergence.detach()},
            live={"clean": clean_logits, "adversarial": adversarial_logits},
        )
