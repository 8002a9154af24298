"""The frozen, typed configuration of a training run: its sections, a method's options, and what they must agree on.

The options of a method stand beside it, those of the networks in ``networks/options.py``; both are resolved through the
registry, so that this module imports neither.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from trilemma.config.registry import METHODS, NETWORKS
from trilemma.config.sections import (
    AttackConfig,
    AugmentationConfig,
    DataConfig,
    MonitorConfig,
    OptimiserConfig,
    RegulariserConfig,
    SamplerConfig,
    ScheduleConfig,
    Section,
    ThreatConfig,
    TrainingConfig,
    UpdateConfig,
    filled_sampler,
)
from trilemma.errors import ConfigError
from trilemma.units import parse_fraction


class MethodOptions(Section):
    """Base of every method's options; a user's own method derives from it in its own file.

    The class variables say what the method needs, so that impossible combinations fail early.
    """

    uses_attack: ClassVar[bool] = False
    uses_sampler: ClassVar[bool] = False
    single_step: ClassVar[bool] = False
    freezes_batch_norm: ClassVar[bool] = False  # trains with the BatchNorm statistics it began with
    forwards_clean: ClassVar[bool] = True  # whether clean images are among the loss's own
    image_sets: ClassVar[int] = 1  # image sets forwarded in the loss, 3 forward passes each
    double_backwards: ClassVar[int] = 0  # of these, sets whose input gradient is differentiated: 3 more each
    leaves_box: ClassVar[bool] = False  # x* keeps to the ball, but not to [0, 1]
    extra_forwards: ClassVar[int] = 0  # forward passes beside walks and loss
    detached_sets: ClassVar[int] = 0  # image sets forwarded in the loss without gradient, 1 forward pass each
    inner_attack: ClassVar[bool] = True  # whether x* is made by attack.steps; else by the training gradient
    reach: ClassVar[float] = 1.0  # how far x* may lie from x, in radii (single steps from noise: three)
    keeps_start: ClassVar[bool] = False  # whether the points hold the attack's random start
    attack_defaults: ClassVar[dict[str, object]] = {}
    sampler_defaults: ClassVar[dict[str, object]] = {}

    name: str
    attack_mode: Literal["eval", "train"] = Field("eval", description="BatchNorm mode during the attack")

    @property
    def loss_sets(self) -> int:
        """``image_sets``, less those that these options make one and the same."""
        return self.image_sets

    @property
    def repeats(self) -> int:
        """How many steps in a row see the same batch."""
        return 1

    def resolved_attack(self, attack: AttackConfig, threat: ThreatConfig | None) -> AttackConfig:
        """``attack`` with the method's values where it is silent; the default step is radius / 4."""
        if not (self.uses_attack and self.inner_attack) or threat is None:
            return attack
        values = {**self.attack_defaults, **attack.model_dump(exclude_none=True)}
        share = values.pop("step_share", "1/4")
        values.setdefault("step_size", str(parse_fraction(threat.radius) * parse_fraction(share)))
        return AttackConfig(**values)

    def resolved_sampler(self, sampler: SamplerConfig) -> SamplerConfig:
        """``sampler`` with the method's values where it is silent."""
        if not self.uses_sampler:
            return sampler
        return filled_sampler(self.sampler_defaults, sampler)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Combinations that work but are known to disappoint, one line each."""
        return []


def _options_from(registry: Any, kind: str) -> Any:
    def validate(value: object) -> object:
        if isinstance(value, BaseModel):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError(f"needs a name; {kind}s: {', '.join(registry.names())}")
        return registry.options(value["name"]).model_validate(value)

    return BeforeValidator(validate)


def check_used(method: MethodOptions, name: str, section: AttackConfig | SamplerConfig) -> None:
    """Refuses settings of an attack or a sampler that the method does not have.

    Args:
        name: ``"attack"`` or ``"sampler"``.

    Raises:
        ConfigError: some of its keys are set.
    """
    attacks = method.uses_attack and method.inner_attack
    used = attacks if name == "attack" else method.uses_sampler
    if not used and section.model_dump(exclude_none=True):
        raise ConfigError(
            f"{name}: method {method.name!r} has no {name}; "
            f"remove the {name} keys ({name}={{}}) or choose another method"
        )


def check_together(
    method: MethodOptions, threat: ThreatConfig | None, regulariser: RegulariserConfig | None
) -> None:
    """Refuses a method without the threat it needs, and a regulariser that the method cannot have.

    Raises:
        ConfigError: naming the section and what to do.
    """
    if method.uses_attack and threat is None:
        raise ConfigError(
            f"threat: method {method.name!r} trains on adversarial images and needs a norm and a radius: threat.norm "
            "and threat.radius in a recipe, threat=trilemma.Threat(norm, radius) in Python"
        )
    if regulariser is None:
        return
    if not method.uses_attack:
        raise ConfigError(
            f"regulariser.name: 'der' compares clean with adversarial energies, but method {method.name!r} makes no "
            "adversarial images; use it with pgd-at, trades, n-fgsm or another adversarial method"
        )
    if regulariser.reference == "start" and not method.keeps_start:
        raise ConfigError(
            f"regulariser.reference: method {method.name!r} keeps no random start; use 'clean', or a single step "
            "from noise such as fgsm-rs or n-fgsm"
        )


class Config(Section):
    """A whole run. Built by :func:`trilemma.config.recipe.load_config`, saved as the run's ``config.yaml``."""

    data: DataConfig = DataConfig()
    network: Annotated[SerializeAsAny[Section], _options_from(NETWORKS, "network")]
    method: Annotated[SerializeAsAny[MethodOptions], _options_from(METHODS, "method")]
    regulariser: RegulariserConfig | None = None
    threat: ThreatConfig | None = None
    attack: AttackConfig = AttackConfig()
    sampler: SamplerConfig = SamplerConfig()
    update: UpdateConfig = UpdateConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    monitors: MonitorConfig = MonitorConfig()
    training: TrainingConfig = TrainingConfig()
    devices: PositiveInt = Field(1, description="processes of this run, one per device")

    @field_validator("attack", "sampler", mode="after")
    @classmethod
    def _fill_from_method(cls, value: Any, info: ValidationInfo) -> Any:
        """Writes the method's own attack and sampler into the config, so that the saved one is whole."""
        options = info.data.get("method")
        if options is None:  # the method itself is at fault and reported instead
            return value
        assert info.field_name is not None
        check_used(options, info.field_name, value)
        if info.field_name == "attack":
            return options.resolved_attack(value, info.data.get("threat"))
        return options.resolved_sampler(value)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        name = self.method.name
        check_together(self.method, self.threat, self.regulariser)
        if self.training.compile and self.method.double_backwards:
            raise ConfigError(
                f"training.compile: method {name!r} differentiates an input gradient, which a compiled network "
                "cannot; leave it false"
            )
        for alarm, ladder in self.monitors.remedies.items():
            for action in (action for rung in ladder for action in rung):
                if action == "der" and not self.method.uses_attack:
                    raise ConfigError(
                        f"monitors.remedies.{alarm}: 'der' needs an adversarial method, not {name!r}"
                    )
                if action == "pgd-2" and not (self.method.single_step and self.attack.steps == 1):
                    raise ConfigError(
                        f"monitors.remedies.{alarm}: 'pgd-2' replaces an attack of one step; {name!r} has none here"
                    )
        if self.training.select == "pgd-10" and self.threat is None:
            raise ConfigError("training.select: 'pgd-10' needs threat.norm and threat.radius")
        if self.schedule.name == "multistep" and not self.schedule.milestones:
            raise ConfigError(
                "schedule.milestones: a multistep schedule needs at least one epoch, such as [30, 40]"
            )
        return self

    @property
    def warnings(self) -> list[str]:
        """Combinations that work but are known to disappoint, one line each."""
        found = self.method.warnings(self.attack, self.sampler)
        if self.update.name == "awp" and self.update.from_epoch > self.training.epochs:
            found.append(
                f"update.from_epoch: {self.update.from_epoch} lies beyond the run's {self.training.epochs} epochs, "
                "so every step will be a plain one"
            )
        if self.method.freezes_batch_norm and getattr(self.network, "norm", "batch") == "batch":
            name, training = self.method.name, self.training
            if training.start is None:
                found.append(
                    f"training.start: {name} keeps the BatchNorm statistics it begins with, and those of fresh "
                    "weights mean nothing; give the run, file or recipe of a first stage"
                )
            if training.reestimate_bn:
                found.append(
                    f"training.reestimate_bn: {name} trains with fixed BatchNorm statistics, and others make "
                    "another classifier of its weights; set it to false"
                )
        return found


# The sections that are the same for every method and network: checking them imports neither.
SharedConfig = create_model(
    "SharedConfig",
    __base__=Section,
    **{
        name: (field.annotation, field)
        for name, field in Config.model_fields.items()
        if name not in ("network", "method")
    },  # type: ignore[call-overload]
)
