"""Free adversarial training: the backward of the weight step also moves the perturbation (Shafahi et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import (
    Field,
    PositiveInt,
)

from trilemma.classifier.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.pgd_at import adversarial_cross_entropy


class FreeATOptions(SingleStepOptions):
    inner_attack: ClassVar[bool] = False
    attack_defaults: ClassVar[dict[str, object]] = {}

    name: Literal["free-at"] = "free-at"
    attack_mode: Literal["train"] = Field(
        "train", description="the forward of the loss is that of the attack"
    )
    replays: PositiveInt = Field(
        8, description="steps in a row on each batch; an epoch has as many times the steps"
    )

    @property
    def repeats(self) -> int:
        return self.replays


class FreeAT(Method):
    """``L = mean CE(x + delta, y)``, each batch ``replays`` times in a row, and after each backward::

        delta <- clip(delta + eps sign grad L, -eps, eps), then clip(x + delta, 0, 1) - x

    Under an L2 threat the step is normalised and the ball is that of L2. ``delta`` starts at 0 and stays across replays
    and batches. A batch of another shape starts it anew. It belongs to the row, not to an image, so the image under
    it changes with the batch, and the first x + delta of a batch is clipped to its own box.
    """

    Options = FreeATOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x = batch.images
        delta = state.extra.get("delta")
        if delta is None or delta.shape != x.shape:
            delta = torch.zeros_like(x)
        state.extra["delta"] = delta.to(x)  # a resumed one comes from the CPU
        starred = (x + state.extra["delta"]).clamp(0.0, 1.0)
        return Points(x, batch.labels, adversarial=starred.requires_grad_())

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return adversarial_cross_entropy(clf, points)

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        assert points.adversarial is not None and points.adversarial.grad is not None
        x, delta = points.clean, state.extra["delta"]
        moved = x + delta + self.threat.epsilon * self.threat.ascent(points.adversarial.grad)
        state.extra["delta"] = self.threat.project(moved, x) - x
