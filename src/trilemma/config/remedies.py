"""How the remedies of a run are written: per alarm a ladder of rungs, per rung a list of actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from trilemma.errors import ConfigError, nearest

AlarmName = Literal[
    "divergence", "catastrophic-overfitting", "robust-overfitting", "gradient-cosine", "accuracy-gap"
]
Action = Literal["rollback", "scale-rate", "der", "pgd-2", "stop"]
# What a remedy may change: options that a step reads anew, not those that a run's state was built from.
SETTABLE = ("method", "regulariser", "attack", "sampler")
FIXED = ("method.name", "sampler.start", "sampler.buffer_size", "sampler.reinit")


class SetAction(BaseModel):
    """A remedy that changes options by their dotted keys, as on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: dict[str, Any]

    @field_validator("set")
    @classmethod
    def _settable(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key.partition(".")[0] not in SETTABLE or key.count(".") != 1 or key in FIXED:
                raise ConfigError(
                    f"monitors.remedies: {key!r} cannot be set during a run; a remedy sets keys of "
                    f"{', '.join(SETTABLE)}, except {', '.join(FIXED)}"
                )
        return value


Rung = tuple[Action | SetAction, ...]


def _ladders(value: Any) -> Any:
    """Remedies as they are written: an action alone is a rung, a rung alone is a ladder; the names are checked."""
    if not isinstance(value, Mapping):
        return value
    ladders: dict[str, Any] = {"divergence": [["rollback", "scale-rate"]]}
    for alarm, ladder in value.items():
        if alarm not in get_args(AlarmName):
            raise ConfigError(
                f"monitors.remedies: unknown alarm {alarm!r}.{nearest(str(alarm), get_args(AlarmName))} "
                f"Alarms: {', '.join(get_args(AlarmName))}"
            )
        rungs = [_listed(rung) for rung in _listed(ladder)]
        for action in (action for rung in rungs for action in rung):
            known = action in get_args(Action) if isinstance(action, str) else _is_set(action)
            if not known:
                raise ConfigError(
                    f"monitors.remedies.{alarm}: unknown action {action!r}.{nearest(str(action), get_args(Action))} "
                    f"Actions: {', '.join(get_args(Action))}, or {{set: {{KEY: VALUE}}}}"
                )
        ladders[alarm] = rungs
    return ladders


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_set(action: Any) -> bool:
    return isinstance(action, SetAction) or (
        isinstance(action, Mapping) and set(action) == {"set"} and isinstance(action["set"], Mapping)
    )


Ladders = Annotated[dict[AlarmName, tuple[Rung, ...]], BeforeValidator(_ladders)]
