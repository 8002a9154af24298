"""Options of dual adversarial training: a classifier and an energy model, each trained on its own adversary."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trilemma.config import AttackConfig, MethodOptions, SamplerConfig


class Dat(MethodOptions):
    forwards_clean: ClassVar[bool] = False  # the real images of its energy term are another view
    image_sets: ClassVar[int] = 3
    uses_attack: ClassVar[bool] = True
    uses_sampler: ClassVar[bool] = True
    freezes_batch_norm: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10, "step_share": "1/5"}
    sampler_defaults: ClassVar[dict[str, object]] = {
        "name": "normalised", "energy": "joint", "steps": 50, "step_size": 0.1, "mode": "eval",
    }  # fmt: skip

    name: Literal["dat"] = "dat"
    outside: str = Field(
        "phase-scrambled",
        description="where walks begin: `phase-scrambled` or `mixed` training images, or a data set or path with "
        "images of other things",
    )
    threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description="mean AUC over 8 batches at which walks grow by a step, to sampler.steps at most",
    )

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Stand-ins, and keys of a chain that these walks have no use for."""
        found = []
        if self.outside in ("phase-scrambled", "mixed"):
            found.append(
                f"method.outside: {self.outside} training images stand in for natural images from elsewhere; a data "
                "set or a path gives those"
            )
        unused = [key for key in ("start", "buffer_size", "reinit") if getattr(sampler, key) is not None]
        if unused:
            found.append(f"sampler.{unused[0]}: walks of dat begin at method.outside, so it changes nothing")
        return found
