"""The sections of a configuration that are the same for every method: frozen pydantic models with types and units.

This module does not import torch, so that a misspelt key is reported without delay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from trilemma.config.registry import SAMPLERS, STARTS, Registry
from trilemma.config.remedies import Ladders
from trilemma.config.section import Section
from trilemma.config.starts import REPLAY_BUFFER, parse_start, start_names
from trilemma.errors import ConfigError, UnknownNameError
from trilemma.units import MOST_PIXELS, Norm, PixelLength, check_radius


def _row_of(registry: Registry) -> AfterValidator:
    """A validator that accepts the names of ``registry``, including those added by other packages."""

    def check(name: str) -> str:
        try:
            registry.row(name)
        except UnknownNameError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(check)


def _check_start(text: str) -> str:
    """Accepts a start of new chains, or a mixture of starts (:mod:`trilemma.config.starts`)."""
    try:
        parse_start(text)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("start: ")) from None
    if REPLAY_BUFFER in start_names(text):
        raise ValueError(
            f"{REPLAY_BUFFER!r} are chains of a finished run; training has its own (sampler.buffer_size), choose the "
            "start of its new chains"
        )
    return text


# The registry is part of the type's metadata, so that the documentation can list its names.
SamplerName = Annotated[str, _row_of(SAMPLERS), SAMPLERS]
StartName = Annotated[str, AfterValidator(_check_start), STARTS]


class DataConfig(Section):
    """The data set: a registered name, or ``folder`` with ``root`` set to a folder, tar, zip or npz file."""

    name: str = "digits"
    root: str | None = Field(None, description="path of the archives or images; may be read-only")
    size: int | None = Field(
        None, ge=1, le=MOST_PIXELS, description="resize images to size x size pixels; null: keep the size"
    )
    held_out: float = Field(
        0.1, gt=0, lt=0.5, description="fraction of the training images held out for checkpoint selection"
    )
    train_images: PositiveInt | None = Field(
        None,
        description="use only this many training images, the first of a fixed stratified order; null: all",
    )
    window: PositiveInt | None = Field(
        None,
        description="shards only: number of places over which an image is shuffled; about so many encoded images are "
        "in memory; null: 10000",
    )
    resident: PositiveInt | None = Field(
        None,
        description="shards only: number of training images, and largest number of held-out images, that are decoded "
        "once for class statistics, starts of chains and selection; null: 20000",
    )


class ThreatConfig(Section):
    """The perturbations that training and evaluation defend against."""

    norm: Norm = "linf"
    radius: PixelLength = "8/255"

    @field_validator("radius")
    @classmethod
    def _check_radius(cls, value: str, info: ValidationInfo) -> str:
        # Without a norm: its own validation failed, and pydantic reports that error.
        check_radius(info.data.get("norm", "l2"), value)
        return value


class AttackConfig(Section):
    """The attack used in training; ``None`` stands for the method's default."""

    steps: PositiveInt | None = Field(None, description="number of gradient steps")
    step_size: PixelLength | None = Field(None, description="step size, pixel units")
    warmup_steps: PositiveInt | None = Field(
        None,
        description="number of training steps during which radius and step size rise linearly to their values",
    )


class SamplerConfig(Section):
    """The sampler used in training; ``None`` stands for the method's default."""

    name: SamplerName | None = None
    steps: PositiveInt | None = None
    step_size: PositiveFloat | None = Field(
        None,
        description="factor of the energy gradient; for `normalised` the L2 length of a step, pixel units",
    )
    noise_std: NonNegativeFloat | None = Field(
        None, description="standard deviation of the noise added per step, pixel units"
    )
    clamp: PositiveFloat | None = Field(
        None, description="bound on the absolute value of each gradient entry; null: the sampler's default"
    )
    energy: Literal["marginal", "joint"] | None = Field(
        None, description="energy that a chain descends: E(x), or E(x,y) of the chain's class"
    )
    start: StartName | None = None
    buffer_size: NonNegativeInt | None = Field(
        None, description="number of images in the replay buffer; 0: every chain begins at a new start"
    )
    reinit: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability that an image drawn from the replay buffer is replaced by a new start",
    )
    mode: Literal["eval", "train"] | None = Field(None, description="BatchNorm mode while sampling")


def filled_sampler(defaults: Mapping[str, Any], sampler: SamplerConfig) -> SamplerConfig:
    """``sampler`` with the values of ``defaults`` in place of ``None``.

    The default step size, noise and clamp are used only with the default sampler; another sampler has its own.
    """
    values = sampler.model_dump(exclude_none=True)
    if values.get("name", defaults.get("name")) != defaults.get("name"):
        defaults = {k: v for k, v in defaults.items() if k not in ("step_size", "noise_std", "clamp")}
    return SamplerConfig.model_validate({**defaults, **values})


# Default weight of DER, by whether it counts abnormal examples alone: docs/studies.md.
DER_BETAS = {True: 3.0, False: 0.3}


class RegulariserConfig(Section):
    """The Delta Energy Regulariser (arXiv 2505.22486)."""

    name: Literal["der"]
    beta: NonNegativeFloat | None = Field(
        None,
        description="weight of the penalty; null: 3 for the single-step form, 0.3 for the multi-step form",
    )
    margin: NonNegativeFloat = Field(
        0.0, description="length of the energy shift up to which there is no penalty (gamma of the paper)"
    )
    form: Literal["auto", "multi-step", "single-step"] = Field(
        "auto",
        description="single-step: penalise abnormal adversarial examples only; multi-step: penalise all; auto: chosen "
        "by the method's attack",
    )
    reference: Literal["clean", "start"] = Field(
        "clean",
        description="images with which x* is compared: the clean ones, or the random starts of a single-step attack",
    )
    average: Literal["batch", "abnormal"] = Field(
        "abnormal",
        description="what the single-step form averages over: the abnormal examples, or the whole batch, as published",
    )
    abnormal_by: Literal["cross-entropy", "joint-energy"] = Field(
        "cross-entropy",
        description="what the attack lowered in an abnormal example: the cross-entropy, or the joint energy E(x, y)",
    )
    gradient: Literal["both", "adversarial"] = Field(
        "both", description="logits through which the penalty has a gradient: of x and x*, or of x* alone"
    )
    mode: Literal["train", "eval"] = Field(
        "train",
        description="BatchNorm's mode in the penalty; eval costs one more forward pass of x and of x*",
    )

    def abnormal_only(self, single_step: bool) -> bool:
        """Whether the form is the single-step one, for a method that attacks with a single step or not."""
        return single_step if self.form == "auto" else self.form == "single-step"

    def resolved(self, single_step: bool) -> Self:
        """``self`` with the default weight of its form in place of ``None``."""
        if self.beta is not None:
            return self
        return self.model_copy(update={"beta": DER_BETAS[self.abnormal_only(single_step)]})


class UpdateConfig(Section):
    """The weight update: the optimiser's step alone, or at perturbed weights (SAM, AWP)."""

    name: Literal["plain", "sam", "awp"] = "plain"
    rho: PositiveFloat = Field(2.0, description="radius of the adaptive sharpness-aware perturbation (sam)")
    gamma: PositiveFloat = Field(
        5e-3, description="norm of the weight perturbation relative to the norm of each weight tensor (awp)"
    )
    from_epoch: PositiveInt = Field(
        1, description="first epoch with the perturbation, counted from 1; plain steps before (awp)"
    )


class OptimiserConfig(Section):
    """The optimiser of the weights; its learning rate is ``training.lr``."""

    name: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4


class ScheduleConfig(Section):
    """The learning rate over the run, as a multiple of ``training.lr``."""

    name: Literal["constant", "cyclic", "one-cycle", "multistep", "cosine"] = "one-cycle"
    warmup_steps: NonNegativeInt = Field(0, description="number of steps of linear warm-up from 0")
    peak: float = Field(0.25, gt=0, lt=1, description="position of the maximum, as a fraction of the run")
    milestones: tuple[PositiveInt, ...] = Field(
        (), description="epochs after which the learning rate is reduced (multistep)"
    )
    factor: float = Field(
        0.1, gt=0, lt=1, description="factor of the learning rate at each milestone (multistep)"
    )


class AugmentationConfig(Section):
    """Augmentation of the training images. ``auto``: padding of size / 8; no flip for digits, MNIST and SVHN."""

    crop: Literal["auto"] | Annotated[int, Field(ge=0, le=MOST_PIXELS)] = Field(
        "auto", description="zero padding on every side before the random crop, pixels"
    )
    flip: Literal["auto"] | bool = "auto"
    policy: Literal["none", "autoaugment"] = Field(
        "none",
        description="colour and geometry operations after crop and flip: the CIFAR-10 policy of AutoAugment",
    )
    cutout: int = Field(
        0, ge=0, le=MOST_PIXELS, description="side of the random square set to 0, pixels; 0: no cutout"
    )


class MonitorConfig(Section):
    """The monitors of a run, and the remedies carried out when they raise an alarm."""

    overfitting: bool = True
    divergence: bool = True
    remedies: Ladders = Field(
        {"divergence": [["rollback", "scale-rate"]]},  # type: ignore[dict-item]  # validated, as a user's
        description="ALARM: [RUNG, RUNG, ...]; a rung is an action or a list of actions, carried out the first, "
        "second, ... time the alarm fires (the last rung repeats). Actions: `rollback`, `scale-rate`, `der`, `pgd-2`, "
        "`stop`, `{set: {KEY: VALUE}}`",
    )
    max_rollbacks: NonNegativeInt = Field(
        3, description="number of rollbacks, over all alarms, after which the run fails"
    )
    rate_factor: float = Field(
        0.3, gt=0, le=1, description="factor by which `scale-rate` multiplies the learning rate"
    )
    der_beta: PositiveFloat | None = Field(
        None,
        description="beta of the regulariser that `der` turns on; null: the default of `regulariser.beta`. If it is on "
        "already, its beta is doubled instead",
    )


class TrainingConfig(Section):
    """Length, learning rate, seed, precision, evaluation and checkpoints of a run."""

    epochs: PositiveInt = 10
    max_minutes: PositiveFloat | None = Field(
        None, description="wall time after which the run stops, at the end of the current step"
    )
    start: str | None = Field(
        None,
        description="initial weights: a run folder, a classifier file, a file of weights, `timm:NAME`, `hub:NAME`, "
        "`robustbench:NAME` or `MODULE:FUNCTION`; or a recipe, which is trained first in `stage-1` of the run folder "
        "on the same data and network; null: random initialisation",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="mean of the normalisation before the network, one value per channel; null: that of the initial "
        "weights or of pretrained weights, else 0.5",
    )
    std: tuple[PositiveFloat, ...] | None = Field(
        None, description="standard deviation of the normalisation; with `training.mean`"
    )
    freeze: NonNegativeInt | tuple[str, ...] = Field(
        (),
        description="layers that are not trained, and whose BatchNorm statistics are kept: names or patterns "
        "(`[stem, blocks.*.norm1]`), or a number of layers from the input on",
    )
    layer_lr: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="PATTERN: FACTOR; factors of the learning rate of layers, such as `{classifier: 10}`",
    )
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from each layer to the one before it (layer-wise decay)",
    )
    batch_size: PositiveInt = 128
    lr: PositiveFloat = 0.1
    # The seeds of methods and processes are this one times 1000, within 64 bits.
    seed: int = Field(0, ge=0, le=2**53)
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of the exponential moving average of the weights; null: no average",
    )
    select: Literal["auto", "clean", "pgd-10", "last"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    winograd: bool = Field(
        True,
        description="3x3 convolutions of at least 64 channels by Winograd's algorithm where that is faster: on a CPU, "
        "in `fp32` and without `compile`; results change by rounding",
    )
    compile: bool = False
    input_noise: NonNegativeFloat = Field(
        0.0, description="standard deviation of the Gaussian noise on training images, pixel units"
    )
    bn_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="momentum of BatchNorm's running statistics (weight of the new batch); null: the network's value, "
        "usually 0.1",
    )
    reestimate_bn: bool = Field(
        True, description="re-estimate BatchNorm's running statistics on clean images before evaluation"
    )
    sync_bn: bool = Field(
        False,
        description="with several processes on GPUs, BatchNorm normalises by the whole batch instead of each process's "
        "part",
    )
    log_every: PositiveInt = Field(10, description="steps between lines of `metrics.jsonl`")
    evaluate_every: PositiveInt = Field(1, description="epochs between evaluations on held-out images")
    held_out_images: PositiveInt = Field(512, description="number of held-out images used for selection")
    checkpoint_minutes: PositiveFloat = Field(2.0, description="longest time between checkpoints, minutes")
