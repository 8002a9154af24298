"""Options of adversarial training by a single step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from trilemma.config import AttackConfig, MethodOptions, ThreatConfig


class SingleStep(MethodOptions):
    """What they share: x* alone in the loss, one step of the radius, its gradient in train mode."""

    forwards_clean: ClassVar[bool] = False
    uses_attack: ClassVar[bool] = True
    single_step: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 1, "step_share": "1"}

    attack_mode: Literal["eval", "train"] = Field("train", description="BatchNorm mode during the attack")


class Fgsm(SingleStep):
    name: Literal["fgsm"] = "fgsm"


class FgsmRS(SingleStep):
    keeps_start: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 1, "step_share": "5/4"}

    name: Literal["fgsm-rs"] = "fgsm-rs"


class NFgsm(SingleStep):
    keeps_start: ClassVar[bool] = True

    name: Literal["n-fgsm"] = "n-fgsm"
    noise: PositiveFloat = Field(2.0, description="half-width of the uniform noise, in radii")


class FreeAT(SingleStep):
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


# l1, l2 and l3 of the paper for CIFAR-10, by base.
AAER_WEIGHTS = {
    "fgsm-rs": {"weight": 1.0, "gap": 2.5, "spread": 1.5},
    "n-fgsm": {"weight": 1.0, "gap": 1.5, "spread": 0.15},
}


class Aaer(SingleStep):
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
        base = FgsmRS() if self.base == "fgsm-rs" else NFgsm()
        return base.resolved_attack(attack, threat)
