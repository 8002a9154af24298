"""Options of adversarial training by several steps, and of the baseline without."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from trilemma.config import MethodOptions


class Standard(MethodOptions):
    name: Literal["standard"] = "standard"


class PgdAT(MethodOptions):
    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["pgd-at"] = "pgd-at"


class Trades(MethodOptions):
    image_sets: ClassVar[int] = 2
    extra_forwards: ClassVar[int] = 1
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["trades"] = "trades"
    beta: NonNegativeFloat = Field(6.0, description="weight of the KL term")


class Mart(MethodOptions):
    image_sets: ClassVar[int] = 2
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    name: Literal["mart"] = "mart"
    beta: NonNegativeFloat = Field(5.0, description="weight of the KL term")


class _Weat(MethodOptions):
    image_sets: ClassVar[int] = 2
    extra_forwards: ClassVar[int] = 1
    uses_attack: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10}

    beta: NonNegativeFloat = Field(6.0, description="weight of the KL term")


class WeatNat(_Weat):
    name: Literal["weat-nat"] = "weat-nat"


class WeatAdv(_Weat):
    name: Literal["weat-adv"] = "weat-adv"
