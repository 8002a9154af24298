"""MART: adversarial training that weights misclassified images more (Wang et al. 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import attacked, nearby_start
from trilemma.walks import objectives


class MartOptions(MethodOptions):
    image_sets: ClassVar[int] = 2
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["mart"] = "mart"
    beta: NonNegativeFloat = Field(5.0, description="weight of the KL term")


class Mart(Method):
    """Boosted cross-entropy on x*, and a KL term weighted by the probability missing from the true class::

        L = mean [ -log p_y(x*) - log(1.0001 - max_{k != y} p_k(x*) + 1e-12)
                   + beta KL(f(x) || f(x*)) (1.0000001 - p_y(x)) ]

    ``p`` is the softmax; x* ascends the cross-entropy from ``x + 0.001 n``. The constants are those of the authors'
    code. The gradient goes through both arguments of the KL and through ``p_y(x)``.
    """

    Options = MartOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        start = nearby_start(state, x)
        return Points(x, y, **attacked(self, clf, x, start, lambda: objectives.cross_entropy(clf, y)))

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None
        clean_logits, adversarial_logits = forward_sets(clf, points.clean, points.adversarial)
        y = points.labels[:, None]
        # max_{k != y} p_k(x*)
        highest_wrong = adversarial_logits.softmax(1).scatter(1, y, 0.0).amax(1)
        # p_y(x)
        true_probability = clean_logits.softmax(1).gather(1, y).squeeze(1)
        boosted = (
            energies.cross_entropy(adversarial_logits, points.labels) - (1.0001 - highest_wrong + 1e-12).log()
        )
        robust = boosted.mean()
        kl = energies.kl_divergence(clean_logits, adversarial_logits)
        divergence = (kl * (1.0000001 - true_probability)).mean()
        return Step(
            robust + self.options.beta * divergence,
            clean=detached(points.clean, clean_logits),
            adversarial=detached(points.adversarial, adversarial_logits),
            metrics={"robust": robust.detach(), "divergence": divergence.detach()},
            live={"clean": clean_logits, "adversarial": adversarial_logits},
        )
