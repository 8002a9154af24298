"""Options of the joint models of clean images, adversarial images and labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from ebat.config import AttackConfig, MethodOptions, SamplerConfig, filled_sampler
from ebat.methods.options.energy_models import LANGEVIN, PROXIMAL, DataView


class EbJdat(MethodOptions):
    image_sets: ClassVar[int] = 4
    uses_attack: ClassVar[bool] = True
    uses_sampler: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 5}

    name: Literal["eb-jdat"] = "eb-jdat"
    data_view: DataView = "unaugmented"
    backbone: Literal["jem", "jem++", "sada-jem"] = Field(
        "sada-jem", description="whose sampler and data view"
    )
    inner: Literal["energy", "ce", "logit"] = Field(
        "energy",
        description="what the inner attack raises: E(x,y), the cross-entropy, or (as released) the true logit",
    )
    alignment: Literal["close", "widen", "der"] = Field(
        "close", description="close: E(x*)-E(x); widen: its negative; der: the delta energy penalty"
    )
    margin: NonNegativeFloat = Field(0.0, description="margin of alignment 'der'")
    project: bool = Field(True, description="keep the inner attack in the ball")
    generative: NonNegativeFloat = Field(1.0, description="w1, weight of the contrastive term")
    align: NonNegativeFloat = Field(1.0, description="w2, weight of the alignment term")
    clean: NonNegativeFloat = Field(1.0, description="a, weight of the clean cross-entropy")
    adversarial: NonNegativeFloat = Field(1.0, description="b, weight of the adversarial cross-entropy")

    def resolved_sampler(self, sampler: SamplerConfig) -> SamplerConfig:
        """The backbone's sampler, ten steps, where ``sampler`` is silent."""
        defaults = {**LANGEVIN, "steps": 10} if self.backbone == "jem" else PROXIMAL
        return filled_sampler(defaults, sampler)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Settings that are reported, or were seen, to go wrong."""
        found = []
        if self.inner == "ce" and self.alignment == "close":
            found.append(
                "method: inner 'ce' does not raise E(x*), so alignment 'close' has no floor; "
                "use inner 'energy' or alignment 'der'"
            )
        if self.align == 0:
            found.append("method.align: without the alignment term training is reported to collapse")
        if (attack.steps or 0) > 10:
            found.append("attack.steps: more than about 10 inner steps are reported to collapse training")
        return found
