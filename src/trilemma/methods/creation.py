"""A method by name, with its options checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trilemma.config.config import Config, check_together, check_used
from trilemma.config.registry import METHODS
from trilemma.config.sections import AttackConfig, RegulariserConfig, SamplerConfig, ThreatConfig
from trilemma.errors import ConfigError, nearest
from trilemma.methods.base import Method
from trilemma.threat import Threat


def create(
    name: str,
    threat: Threat | None = None,
    *,
    attack: Mapping[str, Any] | AttackConfig | None = None,
    sampler: Mapping[str, Any] | SamplerConfig | None = None,
    regulariser: Mapping[str, Any] | RegulariserConfig | None = None,
    **options: Any,
) -> Method:
    """A training method.

    Args:
        name: a registry name (``trilemma list methods``).
        threat: needed by every method that makes adversarial images.
        attack: ``steps``, ``step_size`` where they differ from the method's own.
        sampler: settings of the chain where they differ from the method's own.
        regulariser: ``{"name": "der", "beta": 1.0}``.
        options: the method's options.

    Raises:
        UnknownNameError: no such method.
        ConfigError: unknown or impossible option, or a missing threat.
    """
    kind = METHODS.options(name)
    unknown = [key for key in options if key not in kind.model_fields]
    if unknown:
        allowed = sorted(kind.model_fields.keys() - {"name"})
        raise ConfigError(
            f"method {name!r}: unknown option {unknown[0]!r}.{nearest(unknown[0], allowed)} "
            f"Options: {', '.join(allowed)}"
        )
    try:
        chosen = kind.model_validate({"name": name, **options})
        settings = AttackConfig.model_validate(_plain(attack))
        chain = SamplerConfig.model_validate(_plain(sampler))
        der = None if regulariser is None else RegulariserConfig.model_validate(_plain(regulariser))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"method {name!r}: {where}: {first['msg']}; got {first['input']!r}") from None
    ball = (
        None
        if threat is None
        else ThreatConfig.model_validate({"norm": threat.norm, "radius": threat.radius})
    )
    check_together(chosen, ball, der)
    check_used(chosen, "attack", settings)
    check_used(chosen, "sampler", chain)
    method: Method = METHODS.get(name)(
        chosen, threat, chosen.resolved_attack(settings, ball), chosen.resolved_sampler(chain)
    )
    return method if der is None else _regularised(method, der)


def create_from_config(config: Config) -> Method:
    """The method that a run's configuration describes."""
    threat = None if config.threat is None else Threat(config.threat.norm, config.threat.radius)
    method: Method = METHODS.get(config.method.name)(config.method, threat, config.attack, config.sampler)
    return method if config.regulariser is None else _regularised(method, config.regulariser)


def _regularised(method: Method, der: RegulariserConfig) -> Method:
    from trilemma.methods.der import Regularised

    return Regularised(method, der)


def _plain(section: Any) -> dict[str, Any]:
    if section is None:
        return {}
    return dict(section) if isinstance(section, Mapping) else section.model_dump(exclude_none=True)
