"""Options of single-step training that keeps the loss locally linear."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from trilemma.config import AttackConfig, SamplerConfig, ThreatConfig
from trilemma.errors import ConfigError
from trilemma.methods.options.single_step import SingleStep
from trilemma.units import parse_fraction


class GradAlign(SingleStep):
    image_sets: ClassVar[int] = 2
    double_backwards: ClassVar[int] = 1

    name: Literal["grad-align"] = "grad-align"
    weight: NonNegativeFloat | None = Field(
        None, description="weight of the alignment term; null: by the radius, 0.2 at 8/255 and 2 at 16/255"
    )

    def weight_at(self, radius: float) -> float:
        """The weight at a radius per pixel value: log-linear, ten times as much for 8/255 more."""
        if self.weight is not None:
            return self.weight
        return math.exp(255 * radius * math.log(10) / 8 + math.log(0.02))

    def resolved_attack(self, attack: AttackConfig, threat: ThreatConfig | None) -> AttackConfig:
        """As for every method, but the attack has one step: its gradient is the one at the clean image.

        Raises:
            ConfigError: more steps.
        """
        if attack.steps not in (None, 1):
            raise ConfigError(
                f"attack.steps: {attack.steps} given, but 'grad-align' aligns the gradient of its one step; "
                "use 1, or pgd-at"
            )
        return super().resolved_attack(attack, threat)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """A radius that the rule of the weight was not published for, and gradients of two modes."""
        found = []
        # the one step is as long as the radius
        if self.weight is None and parse_fraction(attack.step_size or 0) > parse_fraction("16/255"):
            found.append(
                "method.weight: its rule is published for L-inf up to 16/255 and grows tenfold with every "
                "8/255; choose the weight yourself"
            )
        if self.attack_mode == "eval":
            found.append(
                "method.attack_mode: 'eval' aligns a gradient in eval mode with one in train mode; "
                "with BatchNorm use 'train'"
            )
        return found


class Elle(SingleStep):
    leaves_box: ClassVar[bool] = True
    image_sets: ClassVar[int] = 4

    name: Literal["elle"] = "elle"
    weight: NonNegativeFloat | None = Field(
        None, description="weight of the linearity error; null: by the radius, 1000, 5000 or 10000"
    )

    def weight_at(self, radius: float) -> float:
        """The weight at a radius per pixel value.

        Published at 2 to 8, 10 to 20 and from 22 in 255ths; a radius between two steps counts to the nearer
        one, halfway to the smaller one.
        """
        if self.weight is not None:
            return self.weight
        levels = 255 * radius
        return 1000.0 if levels <= 9 else 5000.0 if levels <= 21 else 10_000.0


class ElleA(SingleStep):
    leaves_box: ClassVar[bool] = True
    image_sets: ClassVar[int] = 4

    name: Literal["elle-a"] = "elle-a"
    weight: PositiveFloat = Field(4000.0, description="weight of the linearity error once it stands out")
    decay: float = Field(0.99, ge=0, le=1, description="factor of the weight at every other step")
