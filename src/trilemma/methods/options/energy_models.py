"""Options of the JEM family and of its adversarial members, with the chains they share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from trilemma.config import MethodOptions

# The step of the JEM++ family on [0, 1] images: step 1 and clamp 1 on [-1, 1] (pixels: s / 4 and 2 c).
PROXIMAL = {
    "name": "proximal", "energy": "marginal", "steps": 10, "step_size": 0.25, "clamp": 2.0, "noise_std": 0.0,
    "start": "class-gaussian", "buffer_size": 10_000, "reinit": 0.05, "mode": "train",
}  # fmt: skip
# JEM's Langevin chain: step 1 and noise 0.01 on [-1, 1].
LANGEVIN = {
    "name": "langevin", "energy": "marginal", "steps": 20, "step_size": 0.25, "noise_std": 0.005,
    "start": "uniform", "buffer_size": 10_000, "reinit": 0.05, "mode": "eval",
}  # fmt: skip

DataView = Annotated[
    Literal["unaugmented", "classified"],
    Field(
        description="real images of the generative term: un-augmented ones, as published, or those that the "
        "cross-entropy sees; with chains of E(x,y), un-cropped images beside cropped ones can leave classes untrained"
    ),
]


class JointEnergyModel(MethodOptions):
    """What the joint energy models of images and labels share."""

    image_sets: ClassVar[int] = 2
    uses_sampler: ClassVar[bool] = True
    sampler_defaults: ClassVar[dict[str, object]] = PROXIMAL

    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")
    energy_penalty: NonNegativeFloat = Field(
        0.0,
        description="weight of mean E^2 of real and generated images; 0.1 is its users' remedy for divergence",
    )


class Jem(JointEnergyModel):
    sampler_defaults: ClassVar[dict[str, object]] = LANGEVIN

    name: Literal["jem"] = "jem"


class JemPlusPlus(JointEnergyModel):
    name: Literal["jem++"] = "jem++"


class SadaJem(JointEnergyModel):
    image_sets: ClassVar[int] = 3

    name: Literal["sada-jem"] = "sada-jem"
    data_view: DataView = "unaugmented"

    @property
    def loss_sets(self) -> int:
        return self.image_sets - (self.data_view == "classified")


class EnergyAttack(MethodOptions):
    """What the methods that train on x* of the energy attack alone share."""

    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}


class PreJeat(EnergyAttack):
    name: Literal["prejeat"] = "prejeat"


class Jeat(EnergyAttack):
    image_sets: ClassVar[int] = 2
    uses_sampler: ClassVar[bool] = True
    sampler_defaults: ClassVar[dict[str, object]] = LANGEVIN

    name: Literal["jeat"] = "jeat"
    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")
