"""The sections of a configuration that are the same for every method: frozen, typed, with units.

Nothing here imports torch: a misspelt key is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)  # fmt: skip

from trilemma.config.registry import SAMPLERS, STARTS, Registry
from trilemma.config.remedies import Ladders
from trilemma.errors import UnknownNameError
from trilemma.units import Norm, PixelLength


class Section(BaseModel):
    """Base of every part of a configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _row_of(registry: Registry) -> AfterValidator:
    """Checks that a key names a row of ``registry``, whoever added it."""

    def check(name: str) -> str:
        try:
            registry.row(name)
        except UnknownNameError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(check)


# The registry itself stands in the type, so that the documentation can list its names.
SamplerName = Annotated[str, _row_of(SAMPLERS), SAMPLERS]
StartName = Annotated[str, _row_of(STARTS), STARTS]


class DataConfig(Section):
    """Which images: a known name, or ``folder`` with ``root`` at a folder, tar, zip or npz."""

    name: str = "digits"
    root: str | None = Field(None, description="where the archives or images are; may be read-only")
    size: PositiveInt | None = Field(None, description="resize to size x size pixels")
    held_out: float = Field(0.1, gt=0, lt=0.5, description="share of the training images kept for selection")
    train_images: PositiveInt | None = Field(
        None, description="only the first of a fixed stratified order of the training images; null: all"
    )


class ThreatConfig(Section):
    """The perturbations that training and evaluation defend against."""

    norm: Norm = "linf"
    radius: PixelLength = "8/255"


class AttackConfig(Section):
    """The attack of training; a value of ``None`` means the method's own."""

    steps: PositiveInt | None = Field(None, description="gradient steps")
    step_size: PixelLength | None = Field(None, description="pixel units per step")


class SamplerConfig(Section):
    """The sampler of training; a value of ``None`` means the method's own."""

    name: SamplerName | None = None
    steps: PositiveInt | None = None
    step_size: PositiveFloat | None = Field(
        None, description="multiplies the energy gradient; `normalised`: L2 length of a step, pixel units"
    )
    noise_std: NonNegativeFloat | None = Field(None, description="standard deviation per step, pixel units")
    clamp: PositiveFloat | None = Field(
        None, description="bound on each entry of the gradient; None: the sampler's own"
    )
    energy: Literal["marginal", "joint"] | None = Field(
        None, description="what a chain descends: E(x), or E(x,y) of the class it was started for"
    )
    start: StartName | None = None
    buffer_size: NonNegativeInt | None = Field(
        None, description="images in the replay buffer; 0: fresh starts"
    )
    reinit: float | None = Field(None, ge=0, le=1, description="probability that a drawn image starts anew")
    mode: Literal["eval", "train"] | None = Field(None, description="BatchNorm mode while sampling")


def filled_sampler(defaults: Mapping[str, Any], sampler: SamplerConfig) -> SamplerConfig:
    """``sampler`` with ``defaults`` where it is silent.

    The default step, noise and clamp belong to the default sampler; another one brings its own.
    """
    given = sampler.model_dump(exclude_none=True)
    if given.get("name", defaults.get("name")) != defaults.get("name"):
        defaults = {k: v for k, v in defaults.items() if k not in ("step_size", "noise_std", "clamp")}
    return SamplerConfig.model_validate({**defaults, **given})


class RegulariserConfig(Section):
    """The Delta Energy Regulariser (arXiv 2505.22486)."""

    name: Literal["der"]
    beta: NonNegativeFloat = Field(1.0, description="weight of the penalty")
    margin: NonNegativeFloat = Field(0.0, description="shift length without a penalty (gamma of the paper)")
    form: Literal["auto", "multi-step", "single-step"] = Field(
        "auto", description="single-step: only abnormal adversarial examples; auto: by the method's attack"
    )
    reference: Literal["clean", "start"] = Field(
        "clean", description="what x* is compared with: the clean image, or the random start of a single step"
    )


class UpdateConfig(Section):
    """How a gradient becomes a weight step."""

    name: Literal["plain", "sam", "awp"] = "plain"
    rho: PositiveFloat = Field(2.0, description="radius of the adaptive sharpness step (sam)")
    gamma: PositiveFloat = Field(
        5e-3, description="length of the weight perturbation, as a share of each weight tensor's own (awp)"
    )
    from_epoch: PositiveInt = Field(
        1, description="first epoch, counted from 1, with the perturbation; plain steps before it (awp)"
    )


class OptimiserConfig(Section):
    name: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4


class ScheduleConfig(Section):
    """The learning rate over the run, as a multiple of ``training.lr``."""

    name: Literal["constant", "cyclic", "one-cycle", "multistep", "cosine"] = "one-cycle"
    warmup_steps: NonNegativeInt = Field(0, description="linear rise from 0 over this many steps")
    peak: float = Field(0.25, gt=0, lt=1, description="where the maximum lies, as a share of the run")
    milestones: tuple[PositiveInt, ...] = Field(
        (), description="epochs after which the rate falls (multistep)"
    )
    factor: float = Field(0.1, gt=0, lt=1, description="what the rate is multiplied by at a milestone")


class AugmentationConfig(Section):
    """``auto`` follows the data: padding of size / 8; no flip for digits, MNIST and SVHN."""

    crop: Literal["auto"] | NonNegativeInt = Field(
        "auto", description="padding before the random crop, pixels"
    )
    flip: Literal["auto"] | bool = "auto"
    policy: Literal["none", "autoaugment"] = Field(
        "none",
        description="colours and shapes changed after crop and flip: the CIFAR-10 policy of AutoAugment",
    )
    cutout: NonNegativeInt = Field(0, description="side of the square set to 0, pixels; 0: none")


class MonitorConfig(Section):
    """What watches the run, and what is done about its alarms."""

    overfitting: bool = True
    divergence: bool = True
    remedies: Ladders = Field(
        {"divergence": [["rollback", "scale-rate"]]},  # type: ignore[dict-item]  # validated, as a user's
        description="ALARM: [RUNG, RUNG, ...]; a rung is an action or a list of them, carried out at the first, "
        "second, ... sounding (the last one repeats). Actions: `rollback`, `scale-rate`, `der`, `pgd-2`, `stop`, "
        "`{set: {KEY: VALUE}}`",
    )
    max_rollbacks: NonNegativeInt = Field(
        3, description="times the run goes back, over all alarms, before it fails"
    )
    rate_factor: float = Field(
        0.3, gt=0, le=1, description="what `scale-rate` multiplies the learning rate by"
    )
    der_beta: PositiveFloat = Field(
        1.0, description="beta of the regulariser that `der` turns on; where it is on, its own is doubled"
    )


class TrainingConfig(Section):
    epochs: PositiveInt = 10
    max_minutes: PositiveFloat | None = Field(
        None, description="stop after the step that passes this wall time"
    )
    start: str | None = Field(
        None,
        description="weights to begin with: a run folder, a classifier file, or a recipe, which is trained first "
        "in `stage-1` of the run folder on the same data and network; null: fresh ones",
    )
    batch_size: PositiveInt = 128
    lr: PositiveFloat = 0.1
    seed: NonNegativeInt = 0
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights; None: no average")
    select: Literal["auto", "clean", "pgd-10", "last"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    input_noise: NonNegativeFloat = Field(0.0, description="Gaussian noise on training images, pixel units")
    bn_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="weight of a new batch in BatchNorm's running statistics; null: the network's own, usually 0.1",
    )
    reestimate_bn: bool = Field(True, description="BatchNorm statistics from clean images before evaluation")
    log_every: PositiveInt = Field(10, description="steps between metric lines")
    evaluate_every: PositiveInt = Field(1, description="epochs between evaluations on held-out images")
    held_out_images: PositiveInt = Field(512, description="held-out images used for selection")
    checkpoint_minutes: PositiveFloat = Field(2.0, description="at most this long between checkpoints")
