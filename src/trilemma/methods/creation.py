"""Creates a training method from its name and options, or from a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from trilemma.config.config import Config, check_together, check_used
from trilemma.config.registry import METHODS
from trilemma.config.sections import AttackConfig, RegulariserConfig, SamplerConfig, ThreatConfig
from trilemma.errors import ConfigError, nearest
from trilemma.methods.base import Method
from trilemma.printing import quoted
from trilemma.threat import Threat
from trilemma.units import parse_fraction


def create(
    name: str,
    threat: Threat | None = None,
    *,
    attack: Mapping[str, Any] | AttackConfig | None = None,
    sampler: Mapping[str, Any] | SamplerConfig | None = None,
    regulariser: Mapping[str, Any] | RegulariserConfig | None = None,
    **options: Any,
) -> Method:
    """Returns a training method, with its options checked.

    Args:
        name: a registry name (``trilemma list methods``).
        threat: norm and radius; required by every method that makes adversarial images.
        attack: ``steps`` and ``step_size`` of the attack; the method's defaults where not given.
        sampler: settings of the chain; the method's defaults where not given.
        regulariser: a regulariser to add, such as ``{"name": "der", "beta": 0.3}``.
        options: the method's options.

    Raises:
        UnknownNameError: unknown method name.
        ConfigError: unknown or impossible option, or missing threat.
    """
    options_class = METHODS.options(name)
    unknown = [key for key in options if key not in options_class.model_fields]
    if unknown:
        allowed = sorted(options_class.model_fields.keys() - {"name"})
        raise ConfigError(
            f"method {name!r}: unknown option {unknown[0]!r}.{nearest(unknown[0], allowed)} "
            f"Options: {', '.join(allowed)}"
        )
    try:
        method_options = options_class.model_validate({"name": name, **options})
        attack_config = AttackConfig.model_validate(_as_dict(attack))
        sampler_config = SamplerConfig.model_validate(_as_dict(sampler))
        der = None if regulariser is None else RegulariserConfig.model_validate(_as_dict(regulariser))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"method {name!r}: {key}: {first['msg']}; got {quoted(first['input'])}") from None
    threat_config = (
        None
        if threat is None
        else ThreatConfig.model_validate({"norm": threat.norm, "radius": threat.radius})
    )
    check_together(method_options, threat_config, der)
    check_used(method_options, "attack", attack_config)
    check_used(method_options, "sampler", sampler_config)
    method: Method = _method_class(name)(
        method_options,
        threat,
        method_options.resolved_attack(attack_config, threat_config),
        method_options.resolved_sampler(sampler_config),
    )
    return method if der is None else _regularised(method, der)


def create_from_config(config: Config, step: int | None = None) -> Method:
    """Returns the method of a run's configuration, with its regulariser if it has one.

    Args:
        config: configuration of the run.
        step: training step, counted from 0. Before step ``attack.warmup_steps`` the radius and the step size of the
            attack are ``(step + 1) / warmup_steps`` of their values; ``None`` for the values themselves.
    """
    threat = None if config.threat is None else Threat(config.threat.norm, config.threat.radius)
    attack = config.attack
    if step is not None and threat is not None and step < (attack.warmup_steps or 0):
        share = Fraction(step + 1, attack.warmup_steps)
        threat = Threat(threat.norm, str(share * threat.fraction))
        if attack.step_size is not None:
            attack = attack.model_copy(update={"step_size": str(share * parse_fraction(attack.step_size))})
    method_class = _method_class(config.method.name)
    method = method_class(config.method, threat, attack, config.sampler)
    return method if config.regulariser is None else _regularised(method, config.regulariser)


def _method_class(name: str) -> type[Method]:
    """The class of a registered method; a ConfigError if it is none, or lacks ``terms``."""
    method_class = METHODS.get(name)
    if not (isinstance(method_class, type) and issubclass(method_class, Method)):
        raise ConfigError(
            f"method {name!r}: {METHODS.row(name).target} is not a subclass of trilemma.methods.Method"
        )
    if missing := sorted(method_class.__abstractmethods__):
        raise ConfigError(f"method {name!r}: {METHODS.row(name).target} does not define {', '.join(missing)}")
    return method_class


def _regularised(method: Method, der: RegulariserConfig) -> Method:
    from trilemma.methods.der import Regularised

    return Regularised(method, der)


def _as_dict(section: Any) -> dict[str, Any]:
    """Returns the keys that are set in a mapping or a configuration section; empty for ``None``."""
    if section is None:
        return {}
    return dict(section) if isinstance(section, Mapping) else section.model_dump(exclude_none=True)
