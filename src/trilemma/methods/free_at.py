"""Free adversarial training: one backward pass updates weights and perturbation (Shafahi et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt

from trilemma.classifier.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.pgd_at import adversarial_cross_entropy


class FreeATOptions(SingleStepOptions):
    inner_attack: ClassVar[bool] = False
    attack_defaults: ClassVar[dict[str, object]] = {}

    name: Literal["free-at"] = "free-at"
    attack_mode: Literal["train"] = Field(
        "train", description="always train: loss and attack share one forward pass"
    )
    replays: PositiveInt = Field(
        8, description="consecutive steps on each batch; multiplies the steps of an epoch"
    )

    @property
    def repeats(self) -> int:
        return self.replays


class FreeAT(Method):
    """``L = mean CE(x + delta, y)``, each batch ``replays`` times in a row; after each backward pass::

        delta <- clip(delta + eps sign grad L, -eps, eps), then clip(x + delta, 0, 1) - x

    Under an L2 threat the step is normalised and delta is projected onto the L2 ball. ``delta`` is initialised to 0
    and kept across replays and batches; a batch of another shape resets it to 0. It belongs to an index in the batch,
    not to an image, so a new batch combines it with other images; x + delta is then clipped to [0, 1].
    """

    Options = FreeATOptions

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> MethodState:
        state = super().init_state(clf, data, seed)
        state.per_image = ("delta",)
        return state

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x = batch.images
        delta = state.extra.get("delta")
        if delta is None or delta.shape != x.shape:
            delta = torch.zeros_like(x)
        # After a resume, delta is on the CPU.
        state.extra["delta"] = delta.to(x)
        adversarial = (x + state.extra["delta"]).clamp(0.0, 1.0)
        return Points(x, batch.labels, adversarial=adversarial.requires_grad_())

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return adversarial_cross_entropy(clf, points)

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        assert points.adversarial is not None and points.adversarial.grad is not None
        x, delta = points.clean, state.extra["delta"]
        stepped = x + delta + self.threat.epsilon * self.threat.ascent(points.adversarial.grad)
        state.extra["delta"] = self.threat.project(stepped, x) - x
