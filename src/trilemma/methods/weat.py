"""WEAT: TRADES with images weighted by their energy (Mirza et al. 2024, arXiv 2407.06315)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn.functional import softplus

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.methods.base import MethodState, Points, Step, detached, forward_sets
from trilemma.methods.trades import Trades


class _WeatOptions(MethodOptions):
    image_sets: ClassVar[int] = 2
    extra_forwards: ClassVar[int] = 1
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    beta: NonNegativeFloat = Field(6.0, description="weight of the KL term")


class WeatNatOptions(_WeatOptions):
    name: Literal["weat-nat"] = "weat-nat"


class WeatAdvOptions(_WeatOptions):
    name: Literal["weat-adv"] = "weat-adv"


class WeatNat(Trades):
    """``L = mean w [CE(x, y) + beta KL(f(x) || f(x*))]``, ``w = 1 / log(1 + exp |E(x)|)``; x* as in TRADES."""

    Options = WeatNatOptions

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return _weighted(clf, points, self.options.beta, "natural")


class WeatAdv(Trades):
    """``L = mean w [CE(x*, y) + beta KL(f(x) || f(x*))]``, ``w = 1 / log(1 + exp |E(x)|)``; x* as in TRADES."""

    Options = WeatAdvOptions

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return _weighted(clf, points, self.options.beta, "robust")


def energy_weight(logits: Tensor) -> Tensor:
    """Returns ``w = 1 / softplus(|E(x)|)``, ``[N]`` in (0, 1.4427], detached, from clean logits ``[N, K]``.

    Not normalised over the batch. ``softplus(a) = log(1 + exp a)`` without overflow.
    """
    return 1 / softplus(energies.marginal_energy(logits.detach()).abs())


def _weighted(clf: Classifier, points: Points, beta: float, classified: Literal["natural", "robust"]) -> Step:
    """Returns the step of WEAT, with the cross-entropy on x (``classified="natural"``) or on x* (``"robust"``)."""
    assert points.adversarial is not None
    clean_logits, adversarial_logits = forward_sets(clf, points.clean, points.adversarial)
    weight = energy_weight(clean_logits)
    classified_logits = clean_logits if classified == "natural" else adversarial_logits
    named = {
        classified: (weight * energies.cross_entropy(classified_logits, points.labels)).mean(),
        "divergence": (weight * energies.kl_divergence(clean_logits, adversarial_logits)).mean(),
        "weight": weight.mean(),
    }
    return Step(
        named[classified] + beta * named["divergence"],
        clean=detached(points.clean, clean_logits),
        adversarial=detached(points.adversarial, adversarial_logits),
        metrics={name: value.detach() for name, value in named.items()},
        live={"clean": clean_logits, "adversarial": adversarial_logits},
    )
