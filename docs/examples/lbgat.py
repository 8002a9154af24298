"""LBGAT: a training method with a second network of its own, outside the package, in one file.

python docs/examples/lbgat.py training.epochs=20
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat

import trilemma
from trilemma import energies
from trilemma.config import MethodOptions
from trilemma.config.registry import METHODS, NETWORKS
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import attacked, nearby_start
from trilemma.networks.create import create_network
from trilemma.walks import objectives
from trilemma.walks.walk import Objective


class LbgatOptions(MethodOptions):
    """The class variables say what the method needs; the fields are its options in a recipe."""

    uses_attack: ClassVar[bool] = True
    # for the estimate of the cost: x and x*
    image_sets: ClassVar[int] = 2
    # the attack's clean forward, and forward and backward of the guide
    extra_forwards: ClassVar[int] = 4
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["lbgat"] = "lbgat"
    beta: NonNegativeFloat = Field(0.0, description="weight of the KL term")
    guide: dict[str, Any] = Field(
        {"name": "small-resnet"}, description="network of the guide, as in the section network"
    )


class Lbgat(Method):
    """The classifier's logits on x* follow those of a clean network g on x (Cui et al. 2021)::

        L = mean [ 1 / K sum_k (f(x*)_k - g(x)_k)^2 + CE(g(x), y) + beta KL(f(x) || f(x*)) ]

    g, the guide, sees clean images only and learns beside the classifier; gradients go into both networks. x* climbs
    the KL from ``x + 0.001 n``, as in TRADES.
    """

    Options = LbgatOptions

    def init_state(self, clf: trilemma.Classifier, data: ImageSet, seed: int) -> MethodState:
        state = super().init_state(clf, data, seed)
        options = NETWORKS.options(self.options.guide["name"]).model_validate(self.options.guide)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = create_network(options, clf.num_classes, data.image_shape)
        # a Classifier, so that the guide normalises its images as the classifier does
        state.modules["guide"] = trilemma.Classifier(network, clf.num_classes, clf.mean, clf.std).to(
            clf.device
        )
        return state

    def points(self, clf: trilemma.Classifier, batch: trilemma.Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels

        def objective() -> Objective:
            with torch.no_grad():
                return objectives.divergence(clf, clf.logits(x))

        return Points(x, y, **attacked(self, clf, x, nearby_start(state, x), objective))

    def terms(self, clf: trilemma.Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None
        clean_logits, adversarial_logits = forward_sets(clf, points.clean, points.adversarial)
        guide_logits = state.modules["guide"](points.clean)
        boundary = (adversarial_logits - guide_logits).square().mean()
        guide = energies.cross_entropy(guide_logits, points.labels).mean()
        divergence = energies.kl_divergence(clean_logits, adversarial_logits).mean()
        return Step(
            boundary + guide + self.options.beta * divergence,
            clean=detached(points.clean, clean_logits),
            adversarial=detached(points.adversarial, adversarial_logits),
            metrics={
                "boundary": boundary.detach(),
                "guide": guide.detach(),
                "divergence": divergence.detach(),
            },
            live={"clean": clean_logits, "adversarial": adversarial_logits},
        )


METHODS.add(
    "lbgat",
    f"{__name__}:Lbgat",
    summary="logits on adversarial images follow those of a clean network",
    paper="Cui et al. 2021",
    cost="2 steps + 10",
)

if __name__ == "__main__":
    run = trilemma.train("digits/trades", ["method.name=lbgat", *sys.argv[1:]], out="runs/lbgat")
    for name, row in trilemma.evaluate(run.classifier, "digits").items():
        print(f"{name}: {row['value']:.3f} ({row['lower']:.3f} to {row['upper']:.3f})")
