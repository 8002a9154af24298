"""Options of adversarial training by a single step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from ebat.config import MethodOptions


class NFgsm(MethodOptions):
    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    single_step: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 1, "step_share": "1"}

    name: Literal["n-fgsm"] = "n-fgsm"
    attack_mode: Literal["eval", "train"] = Field("train", description="BatchNorm mode during the attack")
    noise: PositiveFloat = Field(2.0, description="half-width of the uniform noise, in radii")
