"""WEAT: images of low energy count less (Mirza et al. 2024, arXiv 2407.06315)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
)
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
    """``w = 1 / softplus(|E(x)|)`` of clean images' logits ``[N, K]``: ``[N]``, in (0, 1.4427], a constant.

    Not normalised over the batch; ``softplus(a) = log(1 + exp a)`` without overflow.
    """
    return 1 / softplus(energies.marginal_energy(logits.detach()).abs())


def _weighted(clf: Classifier, points: Points, beta: float, classified: Literal["natural", "robust"]) -> Step:
    """The loss of both forms; ``classified`` says whether x or x* is."""
    assert points.adversarial is not None
    clean, starred = forward_sets(clf, points.clean, points.adversarial)
    weight = energy_weight(clean)
    chosen = clean if classified == "natural" else starred
    named = {
        classified: (weight * energies.cross_entropy(chosen, points.labels)).mean(),
        "divergence": (weight * energies.kl_divergence(clean, starred)).mean(),
        "weight": weight.mean(),
    }
    return Step(
        named[classified] + beta * named["divergence"],
        clean=detached(points.clean, clean),
        adversarial=detached(points.adversarial, starred),
        metrics={name: value.detach() for name, value in named.items()},
        live={"clean": clean, "adversarial": starred},
    )
