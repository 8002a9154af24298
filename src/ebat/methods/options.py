"""The options of every training method: one frozen class each, free of torch.

They stand in this one file, not in the methods' own, so that a misspelt option is answered without
importing torch. A class variable tells the configuration what the method needs.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from ebat.config import AttackConfig, MethodOptions, SamplerConfig, filled_sampler

# The step of the JEM++ family on [0, 1] images: step 1 and clamp 1 on [-1, 1] (METHODS, conversion s / 4 and 2 c).
PROXIMAL = {
    "name": "proximal", "energy": "marginal", "steps": 10, "step_size": 0.25, "clamp": 2.0, "noise_std": 0.0,
    "start": "class-gaussian", "buffer_size": 10_000, "reinit": 0.05, "mode": "train",
}  # fmt: skip
# JEM's Langevin chain: step 1 and noise 0.01 on [-1, 1].
LANGEVIN = {
    "name": "langevin", "energy": "marginal", "steps": 20, "step_size": 0.25, "noise_std": 0.005,
    "start": "uniform", "buffer_size": 10_000, "reinit": 0.05, "mode": "eval",
}  # fmt: skip


class Standard(MethodOptions):
    name: Literal["standard"] = "standard"


class PgdAT(MethodOptions):
    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["pgd-at"] = "pgd-at"


class NFgsm(MethodOptions):
    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    single_step: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 1, "step_share": "1"}

    name: Literal["n-fgsm"] = "n-fgsm"
    attack_mode: Literal["eval", "train"] = Field("train", description="BatchNorm mode during the attack")
    noise: PositiveFloat = Field(2.0, description="half-width of the uniform noise, in radii")


class Trades(MethodOptions):
    image_sets: ClassVar[int] = 2
    extra_forwards: ClassVar[int] = 1
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["trades"] = "trades"
    beta: NonNegativeFloat = Field(6.0, description="weight of the KL term")


DataView = Annotated[
    Literal["unaugmented", "classified"],
    Field(
        description="real images of the generative term: un-augmented ones, as published, or those that the "
        "cross-entropy sees; with chains of E(x,y), un-cropped images beside cropped ones can leave classes untrained"
    ),
]


class SadaJem(MethodOptions):
    image_sets: ClassVar[int] = 3
    uses_sampler: ClassVar[bool] = True
    sampler_defaults: ClassVar[dict[str, object]] = PROXIMAL

    name: Literal["sada-jem"] = "sada-jem"
    data_view: DataView = "unaugmented"
    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")


class Jeat(MethodOptions):
    forwards_clean: ClassVar[bool] = False
    image_sets: ClassVar[int] = 2
    uses_attack: ClassVar[bool] = True
    uses_sampler: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}
    sampler_defaults: ClassVar[dict[str, object]] = LANGEVIN

    name: Literal["jeat"] = "jeat"
    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")


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
