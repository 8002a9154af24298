"""AAER: a penalty on abnormal adversarial examples, as many and as strong as they are (Lin et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    ValidationInfo,
    field_validator,
)
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import running_statistics_kept
from trilemma.config.sections import AttackConfig, ThreatConfig
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.fgsm_rs import FgsmRSOptions, stepped_from_noise
from trilemma.methods.n_fgsm import NFgsmOptions
from trilemma.methods.pgd_at import adversarial_cross_entropy

# l1, l2 and l3 of the paper for CIFAR-10, by base.
AAER_WEIGHTS = {
    "fgsm-rs": {"weight": 1.0, "gap": 2.5, "spread": 1.5},
    "n-fgsm": {"weight": 1.0, "gap": 1.5, "spread": 0.15},
}


class AaerOptions(SingleStepOptions):
    keeps_start: ClassVar[bool] = True
    detached_sets: ClassVar[int] = 1

    name: Literal["aaer"] = "aaer"
    base: Literal["fgsm-rs", "n-fgsm"] = Field(
        "fgsm-rs", description="the method whose noise and step make x*"
    )
    weight: NonNegativeFloat | None = Field(None, description="l1, weight of the whole term; null: 1")
    gap: NonNegativeFloat | None = Field(
        None, description="l2, weight of the fall of the loss; null: 2.5 (fgsm-rs) or 1.5 (n-fgsm)"
    )
    spread: NonNegativeFloat | None = Field(
        None,
        description="l3, weight of the excess movement of the logits; null: 1.5 (fgsm-rs) or 0.15 (n-fgsm)",
    )

    @field_validator("weight", "gap", "spread", mode="after")
    @classmethod
    def _published(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Writes the base's own weight into the configuration, so that the saved one is whole."""
        base = info.data.get("base")
        assert info.field_name is not None
        return AAER_WEIGHTS[base][info.field_name] if value is None and base is not None else value

    def resolved_attack(self, attack: AttackConfig, threat: ThreatConfig | None) -> AttackConfig:
        """The step of the base where ``attack`` is silent."""
        base = FgsmRSOptions() if self.base == "fgsm-rs" else NFgsmOptions()
        return base.resolved_attack(attack, threat)


class Aaer(Method):
    """An example is abnormal (AAE) if its step lowered the loss, ``CE(x0) > CE(x*)``, normal (NAE) otherwise::

        L = mean CE(x*) + l1 (n_AAE / n) [ l2 mean_AAE(CE(x0) - CE(x*)) + l3 max(V_AAE - V_NAE, 0) ]

    with ``V = mean ||f(x*) - f(x0)||_2^2`` over the group. x0 is the random start of the base, ``fgsm-rs`` or
    ``n-fgsm``, inside the box. f(x0), the l2 term and V_NAE are constants, so that the term trains through V_AAE alone.
    It is 0 where either group is empty.
    """

    Options = AaerOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        noisy = self.options.base == "n-fgsm"
        return stepped_from_noise(self, clf, batch, state, scale=2.0 if noisy else 1.0, project=not noisy)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = adversarial_cross_entropy(clf, points)
        with torch.no_grad(), running_statistics_kept(clf):
            start = clf.logits(points.extra["start"])
        penalty, share = self._penalty(start, step.live["adversarial"], points.labels)
        return replace(
            step,
            loss=step.loss + penalty,
            metrics={"robust": step.loss.detach(), "penalty": penalty.detach(), "abnormal": share},
        )

    def _penalty(self, start: Tensor, starred: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The term, and the share of abnormal examples; no branch, so that the device need not be waited for."""
        option = self.options
        assert option.weight is not None and option.gap is not None and option.spread is not None
        fall = energies.cross_entropy(start, labels) - energies.cross_entropy(starred.detach(), labels)
        abnormal = energies.abnormal(start, starred.detach(), labels)
        share = abnormal.to(fall).mean()
        moved = (starred - start).square().sum(1)
        excess = _mean_of(moved, abnormal) - _mean_of(moved.detach(), ~abnormal)
        penalty = share * (option.gap * _mean_of(fall, abnormal) + option.spread * excess.clamp_min(0))
        return option.weight * penalty * (abnormal.any() & ~abnormal.all()), share


def _mean_of(values: Tensor, group: Tensor) -> Tensor:
    """The mean over a group; 0 if it is empty."""
    return (values * group).sum() / group.sum().clamp_min(1)
