"""JEAT: joint energy adversarial training (arXiv 2108.09093)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
)

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.generative import LANGEVIN, contrastive
from trilemma.methods.inner import Attacked, attacked, chain, fresh_seeds
from trilemma.walks import objectives


class EnergyAttackOptions(MethodOptions):
    """What the methods that train on x* of the energy attack alone share."""

    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}


class JeatOptions(EnergyAttackOptions):
    image_sets: ClassVar[int] = 2
    uses_sampler: ClassVar[bool] = True
    sampler_defaults: ClassVar[dict[str, object]] = LANGEVIN

    name: Literal["jeat"] = "jeat"
    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")


class Jeat(Method):
    """``L = mean CE(x*, y) + w (mean E(x*) - mean E(x^))``: maximises log p(x*, y).

    x* climbs the joint energy E(x*, y) from a uniform start in the ball; x^ is a chain on E(x). The
    paper leaves the steps open; ours are ten of radius / 4, and JEM's chain.
    """

    Options = JeatOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        starred = energy_attack(self, clf, batch, state)
        chains = chain(clf, state, self.sampler, len(batch.images), clip=False)
        return Points(batch.images, batch.labels, **starred, **chains)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None and points.generated is not None
        starred, generated = forward_sets(clf, None, points.adversarial, points.generated)
        robust = energies.cross_entropy(starred, points.labels).mean()
        contrast = contrastive(points, starred, generated)
        return Step(
            robust + self.options.generative * contrast,
            adversarial=detached(points.adversarial, starred),
            generated=detached(points.generated, generated),
            metrics={"robust": robust.detach(), "contrastive": contrast.detach()},
            live={"adversarial": starred},
        )


def energy_attack(method: Method, clf: Classifier, batch: Batch, state: MethodState) -> Attacked:
    """``x* <- project(x* + a sign grad E(x*, y))`` from a uniform start in the ball."""
    x, y = batch.images, batch.labels
    start = method.threat.random_start(x, fresh_seeds(state, x))
    return attacked(method, clf, x, start, lambda: objectives.joint_energy(clf, y))
