"""Logit pairing: a user-defined training method in one file, outside the package.

python docs/examples/my_method.py training.epochs=20
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

import trilemma
from trilemma import energies
from trilemma.config import MethodOptions
from trilemma.config.registry import METHODS
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import attacked, fresh_seeds
from trilemma.walks import objectives


class LogitPairingOptions(MethodOptions):
    """The class variables describe what the method needs; the fields are its options in a recipe."""

    uses_attack: ClassVar[bool] = True
    # The loss forwards x and x*; used by `trilemma validate` to estimate the cost.
    image_sets: ClassVar[int] = 2
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["logit-pairing"] = "logit-pairing"
    pairing: NonNegativeFloat = Field(0.5, description="weight of the pairing term")


class LogitPairing(Method):
    """Cross-entropy on clean and adversarial images, plus the squared difference of their logits (arXiv 1803.06373)::

        L = mean [ (CE(x, y) + CE(x*, y)) / 2 + pairing / K sum_k (f(x)_k - f(x*)_k)^2 ]

    In energies, the pairing term is the mean over all classes k of dE(x, k)^2: it penalises any change of a joint
    energy under the attack. x* is found by PGD on the cross-entropy.
    """

    Options = LogitPairingOptions

    def points(self, clf: trilemma.Classifier, batch: trilemma.Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        start = self.threat.random_start(x, fresh_seeds(state, x))
        adversarial = attacked(self, clf, x, start, lambda: objectives.cross_entropy(clf, y))
        return Points(x, y, **adversarial)

    def terms(self, clf: trilemma.Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None
        clean_logits, adversarial_logits = forward_sets(clf, points.clean, points.adversarial)
        natural = energies.cross_entropy(clean_logits, points.labels).mean()
        robust = energies.cross_entropy(adversarial_logits, points.labels).mean()
        pairing = (clean_logits - adversarial_logits).square().mean()
        return Step(
            (natural + robust) / 2 + self.options.pairing * pairing,
            clean=detached(points.clean, clean_logits),
            adversarial=detached(points.adversarial, adversarial_logits),
            metrics={
                "natural": natural.detach(),
                "robust": robust.detach(),
                "pairing": pairing.detach(),
            },
            # Read by the regulariser `der`, if a recipe adds it.
            live={"clean": clean_logits, "adversarial": adversarial_logits},
        )


METHODS.add(
    "logit-pairing",
    f"{__name__}:LogitPairing",
    summary="clean and adversarial cross-entropy, logits paired",
    paper="arXiv 1803.06373",
    cost="2 steps + 6",
)

if __name__ == "__main__":
    run = trilemma.train(
        str(Path(__file__).with_name("my_recipe.yaml")), sys.argv[1:], out="runs/logit-pairing"
    )
    for name, row in trilemma.evaluate(run.classifier, "digits").items():
        print(f"{name}: {row['value']:.3f} ({row['lower']:.3f} to {row['upper']:.3f})")
