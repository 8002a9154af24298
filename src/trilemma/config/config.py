"""The frozen, typed configuration of a training run, the base class of method options, and checks across sections.

The options class of a method is defined in the method's file, those of the networks in ``networks/options.py``; both
are looked up in the registry, so that this module imports neither.
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
from trilemma.config.section import Section
from trilemma.config.sections import (
    AttackConfig,
    AugmentationConfig,
    DataConfig,
    MonitorConfig,
    OptimiserConfig,
    RegulariserConfig,
    SamplerConfig,
    ScheduleConfig,
    ThreatConfig,
    TrainingConfig,
    UpdateConfig,
    filled_sampler,
)
from trilemma.errors import ConfigError
from trilemma.units import parse_fraction


class MethodOptions(Section):
    """Base class of every method's options; a user's own method subclasses it in its own file.

    The class variables declare what the method needs and what a step costs. They are used to refuse impossible
    combinations of sections before training begins, and to estimate the cost of a run.

    Attributes:
        uses_attack: trains on adversarial images.
        uses_sampler: trains on generated images.
        single_step: the attack is a single gradient step.
        freezes_batch_norm: trains with fixed BatchNorm running statistics, those of the initial weights.
        forwards_clean: the loss does a forward pass of the clean images.
        image_sets: image sets forwarded in the loss with gradient; each costs 3 forward passes.
        double_backwards: number of these sets whose input gradient is differentiated; each costs 3 forward passes more.
        leaves_box: x* stays in the ball, but may leave [0, 1].
        extra_forwards: forward passes besides those of attack, sampler and loss.
        detached_sets: image sets forwarded in the loss without gradient; each costs 1 forward pass.
        inner_attack: x* is made by an attack of ``attack.steps`` steps; otherwise by the training gradient.
        reach: largest distance of x* from x, in radii (3 for single steps from noise).
        keeps_start: the method stores the attack's random start with its points.
        attack_defaults: values of ``attack`` where the recipe sets none; ``step_share`` is the step size in radii.
        sampler_defaults: values of ``sampler`` where the recipe sets none.
    """

    uses_attack: ClassVar[bool] = False
    uses_sampler: ClassVar[bool] = False
    single_step: ClassVar[bool] = False
    freezes_batch_norm: ClassVar[bool] = False
    forwards_clean: ClassVar[bool] = True
    image_sets: ClassVar[int] = 1
    double_backwards: ClassVar[int] = 0
    leaves_box: ClassVar[bool] = False
    extra_forwards: ClassVar[int] = 0
    detached_sets: ClassVar[int] = 0
    inner_attack: ClassVar[bool] = True
    reach: ClassVar[float] = 1.0
    keeps_start: ClassVar[bool] = False
    attack_defaults: ClassVar[dict[str, object]] = {}
    sampler_defaults: ClassVar[dict[str, object]] = {}

    name: str
    attack_mode: Literal["eval", "train"] = Field("eval", description="BatchNorm mode during the attack")

    @property
    def loss_sets(self) -> int:
        """``image_sets``, with sets counted once that coincide under these option values."""
        return self.image_sets

    @property
    def other_forwards(self) -> int:
        """``extra_forwards``, and those that these option values add."""
        return self.extra_forwards

    @property
    def repeats(self) -> int:
        """Number of consecutive steps that use the same batch."""
        return 1

    def resolved_attack(self, attack: AttackConfig, threat: ThreatConfig | None) -> AttackConfig:
        """``attack`` with the method's default in place of ``None``; the default step size is radius / 4."""
        if not (self.uses_attack and self.inner_attack) or threat is None:
            return attack
        values = {**self.attack_defaults, **attack.model_dump(exclude_none=True)}
        share = values.pop("step_share", "1/4")
        values.setdefault("step_size", str(parse_fraction(threat.radius) * parse_fraction(share)))
        return AttackConfig(**values)

    def resolved_sampler(self, sampler: SamplerConfig) -> SamplerConfig:
        """``sampler`` with the method's default in place of ``None``."""
        if not self.uses_sampler:
            return sampler
        return filled_sampler(self.sampler_defaults, sampler)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Warnings about combinations that are possible but known to train badly, one line each."""
        return []


def _options_from(registry: Any, kind: str) -> Any:
    """A validator that turns a name or a mapping with a ``name`` into the options class of that registry row."""

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
    """Checks that ``section`` sets nothing if the method does not use it.

    Args:
        method: the options of the method.
        name: ``"attack"`` or ``"sampler"``.
        section: the section of that name.

    Raises:
        ConfigError: the method has no attack or sampler, but a key of its section is set.
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
    """Checks that the method has the threat it needs, and that the regulariser works with the method.

    Raises:
        ConfigError: an adversarial method without ``threat``, or a regulariser that the method cannot use.
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
            f"regulariser.reference: method {method.name!r} stores no random start; use 'clean', or a single-step "
            "method that starts from noise, such as fgsm-rs or n-fgsm"
        )


class Config(Section):
    """The configuration of a whole run.

    Built by :func:`trilemma.config.recipe.load_config`, saved as the run's ``config.yaml``.
    """

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
    devices: PositiveInt = Field(1, description="number of processes of this run, one per device")

    @field_validator("regulariser", mode="after")
    @classmethod
    def _fill_regulariser(cls, value: RegulariserConfig | None, info: ValidationInfo) -> Any:
        """Fills in the default weight of the method's form."""
        options = info.data.get("method")
        return value if value is None or options is None else value.resolved(options.single_step)

    @field_validator("attack", "sampler", mode="after")
    @classmethod
    def _fill_from_method(cls, value: Any, info: ValidationInfo) -> Any:
        """Fills in the method's default attack and sampler, so that the saved configuration is complete."""
        options = info.data.get("method")
        # No method: its section failed to validate, and pydantic reports that error.
        if options is None:
            return value
        assert info.field_name is not None
        check_used(options, info.field_name, value)
        if info.field_name == "attack":
            return options.resolved_attack(value, info.data.get("threat"))
        return options.resolved_sampler(value)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        """Refuses combinations of sections that cannot work together."""
        name = self.method.name
        check_together(self.method, self.threat, self.regulariser)
        if self.training.compile and self.method.double_backwards:
            raise ConfigError(
                f"training.compile: method {name!r} differentiates an input gradient, which torch.compile does not "
                "support; set it to false"
            )
        for alarm, ladder in self.monitors.remedies.items():
            for action in (action for rung in ladder for action in rung):
                if action == "der" and not self.method.uses_attack:
                    raise ConfigError(
                        f"monitors.remedies.{alarm}: 'der' needs a method that trains on adversarial images, "
                        f"not {name!r}; remove it or choose another method"
                    )
                if action == "pgd-2" and not (self.method.single_step and self.attack.steps == 1):
                    raise ConfigError(
                        f"monitors.remedies.{alarm}: 'pgd-2' replaces a single-step attack, which {name!r} does not "
                        "use here; remove it or choose a single-step method"
                    )
        if self.training.select == "pgd-10" and self.threat is None:
            raise ConfigError(
                "training.select: 'pgd-10' needs threat.norm and threat.radius; set them or select 'clean'"
            )
        if (self.training.mean is None) != (self.training.std is None):
            raise ConfigError("training.mean, training.std: give both, or neither")
        if self.schedule.name == "multistep" and not self.schedule.milestones:
            raise ConfigError(
                "schedule.milestones: a multistep schedule needs at least one epoch, such as [30, 40]"
            )
        return self

    @property
    def warnings(self) -> list[str]:
        """Warnings about combinations that are possible but known to train badly, one line each."""
        warnings = self.method.warnings(self.attack, self.sampler)
        if self.update.name == "awp" and self.update.from_epoch > self.training.epochs:
            warnings.append(
                f"update.from_epoch: {self.update.from_epoch} is beyond the run's {self.training.epochs} epochs, "
                "so no step will use the weight perturbation; lower it"
            )
        if (
            self.training.freeze
            and self.training.start is None
            and not getattr(self.network, "pretrained", False)
        ):
            warnings.append(
                "training.freeze: freezes randomly initialised weights; set training.start or network.pretrained"
            )
        if self.method.freezes_batch_norm and getattr(self.network, "norm", "batch") == "batch":
            name, training = self.method.name, self.training
            if training.start is None:
                warnings.append(
                    f"training.start: {name} trains with the BatchNorm statistics of its initial weights, and those "
                    "of a freshly initialised network are meaningless; set it to the run, file or recipe of a first "
                    "stage"
                )
            if training.reestimate_bn:
                warnings.append(
                    f"training.reestimate_bn: {name} trains with fixed BatchNorm statistics, and re-estimated ones "
                    "change what the trained weights compute; set it to false"
                )
        return warnings


# The sections that are the same for every method and network: validating them imports no method and no network.
SharedConfig = create_model(
    "SharedConfig",
    __base__=Section,
    **{
        name: (field.annotation, field)
        for name, field in Config.model_fields.items()
        if name not in ("network", "method")
    },  # type: ignore[call-overload]
)
