"""JEAT: joint energy adversarial training (arXiv 2108.09093)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.generative import LANGEVIN, WarmedUp, WarmupSteps, compared_energies
from trilemma.methods.inner import Attacked, attacked, chain, fresh_seeds
from trilemma.walks import objectives


class EnergyAttackOptions(MethodOptions):
    """Options of methods whose x* comes from the energy attack and that forward no clean images."""

    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}


class JeatOptions(EnergyAttackOptions):
    image_sets: ClassVar[int] = 2
    uses_sampler: ClassVar[bool] = True
    sampler_defaults: ClassVar[dict[str, object]] = LANGEVIN

    name: Literal["jeat"] = "jeat"
    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")
    warmup_steps: WarmupSteps = 0
    energy_penalty: NonNegativeFloat = Field(
        0.0, description="weight of mean E^2 of adversarial and generated images"
    )


class Jeat(WarmedUp):
    """Maximises log p(x*, y)::

        L = mean CE(x*, y) + w (mean E(x*) - mean E(x^))
          + energy_penalty (mean E(x*)^2 + mean E(x^)^2)

    x* ascends the joint energy E(x*, y) from a uniform start in the ball; x^ is a chain on E(x). The paper does not
    specify the steps: the attack takes ten steps of radius / 4, and the chain is JEM's. The penalty is 0 by default,
    and w has its value from the first step on unless ``warmup_steps`` is set.
    """

    Options = JeatOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        adversarial = energy_attack(self, clf, batch, state)
        chains = chain(clf, state, self.sampler, len(batch.images), clip=False)
        return Points(batch.images, batch.labels, **adversarial, **chains)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None and points.generated is not None
        adversarial_logits, generated_logits = forward_sets(clf, None, points.adversarial, points.generated)
        robust = energies.cross_entropy(adversarial_logits, points.labels).mean()
        energy, generated_energy = compared_energies(points, adversarial_logits, generated_logits)
        contrast = energy.mean() - generated_energy.mean()
        penalty = energy.square().mean() + generated_energy.square().mean()
        return Step(
            robust + self.weight(state) * contrast + self.options.energy_penalty * penalty,
            adversarial=detached(points.adversarial, adversarial_logits),
            generated=detached(points.generated, generated_logits),
            metrics={
                "robust": robust.detach(), "contrastive": contrast.detach(), "energy_penalty": penalty.detach(),
            },
            live={"adversarial": adversarial_logits},
        )  # fmt: skip


def energy_attack(method: Method, clf: Classifier, batch: Batch, state: MethodState) -> Attacked:
    """Returns x* of ``x* <- project(x* + a sign grad E(x*, y))`` from a uniform start in the ball."""
    x, y = batch.images, batch.labels
    start = method.threat.random_start(x, fresh_seeds(state, x))
    return attacked(method, clf, x, start, lambda: objectives.joint_energy(clf, y))
