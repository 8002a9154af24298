"""Options of the joint models of clean images, adversarial images and labels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from trilemma.config import AttackConfig, MethodOptions, SamplerConfig, filled_sampler
from trilemma.methods.options.energy_models import LANGEVIN, PROXIMAL, DataView

Backbone = Annotated[Literal["jem", "jem++", "sada-jem"], Field(description="whose sampler and data view")]
Inner = Annotated[
    Literal["energy", "ce", "logit"],
    Field(
        description="what the inner attack raises: E(x,y), the cross-entropy, or (as released) the true logit"
    ),
]
Alignment = Annotated[
    Literal["close", "widen", "widen-data", "der"],
    Field(
        description="close: E(x*)-E(x); widen: its negative; widen-data: E(x_data)-E(x*), as released; "
        "der: the delta energy penalty"
    ),
]
StartScale = Annotated[PositiveFloat, Field(description="half-width of the uniform start of x*, in radii")]
DataNoise = Annotated[
    NonNegativeFloat,
    Field(
        description="Gaussian noise on the un-augmented images of the generative term, pixel units "
        "(backbone sada-jem)"
    ),
]
Project = Annotated[bool, Field(description="keep the inner attack in the ball")]
Generative = Annotated[NonNegativeFloat, Field(description="w1, weight of the contrastive term")]
Align = Annotated[NonNegativeFloat, Field(description="w2, weight of the alignment term")]
Clean = Annotated[NonNegativeFloat, Field(description="a, weight of the clean cross-entropy")]
Adversarial = Annotated[NonNegativeFloat, Field(description="b, weight of the adversarial cross-entropy")]

# The released weights of the two backbones with BatchNorm are the defaults below; these are jem's.
JEM_WEIGHTS = {"generative": 0.45, "align": 0.05, "clean": 0.45, "adversarial": 0.45}


class JointModel(MethodOptions):
    """Our form, the released one, and the paper's, whose game is inner 'energy' with alignment 'close'."""

    image_sets: ClassVar[int] = 4
    uses_attack: ClassVar[bool] = True
    uses_sampler: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 5}

    data_view: DataView = "unaugmented"
    backbone: Backbone = "sada-jem"
    inner: Inner = "ce"
    alignment: Alignment = "der"
    margin: NonNegativeFloat = Field(0.0, description="margin of alignment 'der'")
    start_scale: StartScale = 1.0
    project: Project = True
    data_noise: DataNoise = 0.0
    generative: Generative = 1.0
    align: Align = 1.0
    clean: Clean = 1.0
    adversarial: Adversarial = 1.0

    @property
    def loss_sets(self) -> int:
        own_data = self.backbone == "sada-jem" and self.data_view == "unaugmented"
        return self.image_sets - (not own_data)

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


class EbJdat(JointModel):
    name: Literal["eb-jdat"] = "eb-jdat"


class EbJdatRelease(JointModel):
    reach: ClassVar[float] = 9 / 8  # half a radius of start and five steps of an eighth
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 5, "step_share": "1/8"}

    name: Literal["eb-jdat-release"] = "eb-jdat-release"
    inner: Inner = "logit"
    alignment: Alignment = "widen-data"
    start_scale: StartScale = 0.5
    project: Project = False
    data_noise: DataNoise = 0.015  # 0.03 on [-1, 1]
    align: Align = 0.1

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_backbone(cls, given: Any) -> Any:
        """Backbone jem was released with weights of its own."""
        if isinstance(given, dict) and given.get("backbone") == "jem":
            return {**JEM_WEIGHTS, **given}
        return given
