"""FGSM training: one attack step, as long as the radius, from the clean image (Goodfellow et al. 2015)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.inner import attacked
from trilemma.methods.pgd_at import adversarial_cross_entropy
from trilemma.walks import objectives


class SingleStepOptions(MethodOptions):
    """Options of single-step methods: a loss on x* alone, one attack step as long as the radius, in train mode."""

    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    single_step: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 1, "step_share": "1"}

    attack_mode: Literal["eval", "train"] = Field("train", description="BatchNorm mode during the attack")


class FgsmOptions(SingleStepOptions):
    name: Literal["fgsm"] = "fgsm"


class Fgsm(Method):
    """``L = mean CE(x*, y)``, ``x* = clip(x + eps sign grad CE(x, y))``: no random start.

    At large radii it overfits catastrophically; it is included as the test case of the remedies.
    """

    Options = FgsmOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        return Points(x, y, **attacked(self, clf, x, x, lambda: objectives.cross_entropy(clf, y)))

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return adversarial_cross_entropy(clf, points)
