"""AAER: a penalty on the number and the strength of abnormal adversarial examples (Lin et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, ValidationInfo, field_validator
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import running_statistics_kept
from trilemma.config.sections import AttackConfig, ThreatConfig
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.fgsm_rs import FgsmRSOptions, single_step_from_noise
from trilemma.methods.n_fgsm import NFgsmOptions
from trilemma.methods.pgd_at import adversarial_cross_entropy

# l1 (weight), l2 (gap) and l3 (spread) of the paper for CIFAR-10, per base method.
AAER_WEIGHTS = {
    "fgsm-rs": {"weight": 1.0, "gap": 2.5, "spread": 1.5},
    "n-fgsm": {"weight": 1.0, "gap": 1.5, "spread": 0.15},
}


class AaerOptions(SingleStepOptions):
    keeps_start: ClassVar[bool] = True
    detached_sets: ClassVar[int] = 1

    name: Literal["aaer"] = "aaer"
    base: Literal["fgsm-rs", "n-fgsm"] = Field(
        "fgsm-rs", description="method that makes x*: its noise and its step"
    )
    weight: NonNegativeFloat | None = Field(None, description="l1, weight of the whole term; null: 1")
    gap: NonNegativeFloat | None = Field(
        None, description="l2, weight of the decrease of the loss; null: 2.5 (fgsm-rs) or 1.5 (n-fgsm)"
    )
    spread: NonNegativeFloat | None = Field(
        None,
        description="l3, weight of the excess change of the logits; null: 1.5 (fgsm-rs) or 0.15 (n-fgsm)",
    )

    @field_validator("weight", "gap", "spread", mode="after")
    @classmethod
    def _published(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Replaces ``None`` by the published weight of the base, so that the saved configuration is complete."""
        base = info.data.get("base")
        assert info.field_name is not None
        return AAER_WEIGHTS[base][info.field_name] if value is None and base is not None else value

    def resolved_attack(self, attack: AttackConfig, threat: ThreatConfig | None) -> AttackConfig:
        """Returns ``attack``, with the values of the base method where a key is not set."""
        base = FgsmRSOptions() if self.base == "fgsm-rs" else NFgsmOptions()
        return base.resolved_attack(attack, threat)


class Aaer(Method):
    """Cross-entropy of x* plus a penalty on abnormal adversarial examples::

        L = mean CE(x*) + l1 (n_AAE / n) [ l2 mean_AAE(CE(x0) - CE(x*)) + l3 max(V_AAE - V_NAE, 0) ]

    An example is abnormal (AAE) if the attack step lowered its loss, ``CE(x0) > CE(x*)``, and normal (NAE) otherwise.
    ``V = mean ||f(x*) - f(x0)||_2^2`` over the group. x0 is the random start of the base method, ``fgsm-rs`` or
    ``n-fgsm``, clipped to [0, 1]. f(x0), the l2 term and V_NAE are detached, so the penalty has a gradient through
    V_AAE alone. The penalty is 0 if either group is empty.
    """

    Options = AaerOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        noisy = self.options.base == "n-fgsm"
        return single_step_from_noise(self, clf, batch, state, scale=2.0 if noisy else 1.0, project=not noisy)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = adversarial_cross_entropy(clf, points)
        with torch.no_grad(), running_statistics_kept(clf):
            start_logits = clf.logits(points.extra["start"])
        penalty, share = self._penalty(start_logits, step.live["adversarial"], points.labels)
        return replace(
            step,
            loss=step.loss + penalty,
            metrics={"robust": step.loss.detach(), "penalty": penalty.detach(), "abnormal": share},
        )

    def _penalty(
        self, start_logits: Tensor, adversarial_logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the penalty and the share of abnormal examples, both scalars.

        Masks instead of branches: a branch would wait for the device.
        """
        option = self.options
        assert option.weight is not None and option.gap is not None and option.spread is not None
        detached_logits = adversarial_logits.detach()
        decrease = energies.cross_entropy(start_logits, labels) - energies.cross_entropy(
            detached_logits, labels
        )
        abnormal = energies.abnormal(start_logits, detached_logits, labels)
        share = abnormal.to(decrease).mean()
        distance = (adversarial_logits - start_logits).square().sum(1)
        excess = _masked_mean(distance, abnormal) - _masked_mean(distance.detach(), ~abnormal)
        penalty = share * (
            option.gap * _masked_mean(decrease, abnormal) + option.spread * excess.clamp_min(0)
        )
        return option.weight * penalty * (abnormal.any() & ~abnormal.all()), share


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of ``values`` where ``mask`` is true; 0 if it is true nowhere."""
    return (values * mask).sum() / mask.sum().clamp_min(1)
