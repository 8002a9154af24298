"""Remedies in a configuration: for each alarm a ladder (list of rungs), each rung a list of actions.

The first time an alarm fires, the actions of the first rung are carried out, the second time those of the second rung,
and so on; the last rung repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from trilemma.errors import ConfigError, nearest

AlarmName = Literal[
    "divergence", "catastrophic-overfitting", "robust-overfitting", "gradient-cosine", "accuracy-gap"
]
Action = Literal["rollback", "scale-rate", "der", "pgd-2", "stop"]
# The keys that a remedy may set: options that every step reads again. Options from which the state of the run is built
# at its start are excluded.
SETTABLE = ("method", "regulariser", "attack", "sampler")
FIXED = ("method.name", "sampler.start", "sampler.buffer_size", "sampler.reinit")


class SetAction(BaseModel):
    """A remedy action that sets options by their dotted keys, as on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: dict[str, Any]

    @field_validator("set")
    @classmethod
    def _settable(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key.partition(".")[0] not in SETTABLE or key.count(".") != 1 or key in FIXED:
                raise ConfigError(
                    f"monitors.remedies: {key!r} cannot be set during a run; use a key of "
                    f"{', '.join(SETTABLE)}, except {', '.join(FIXED)}"
                )
        return value


Rung = tuple[Action | SetAction, ...]


def _ladders(value: Any) -> Any:
    """Expands the short forms (an action for a rung, a rung for a ladder) and checks alarm and action names.

    Raises:
        ConfigError: an unknown alarm or action.
    """
    if not isinstance(value, Mapping):
        return value
    ladders: dict[str, Any] = {"divergence": [["rollback", "scale-rate"]]}
    for alarm, ladder in value.items():
        if alarm not in get_args(AlarmName):
            raise ConfigError(
                f"monitors.remedies: unknown alarm {alarm!r}.{nearest(str(alarm), get_args(AlarmName))} "
                f"Alarms: {', '.join(get_args(AlarmName))}"
            )
        rungs = [_as_list(rung) for rung in _as_list(ladder)]
        for action in (action for rung in rungs for action in rung):
            known = action in get_args(Action) if isinstance(action, str) else _is_set(action)
            if not known:
                raise ConfigError(
                    f"monitors.remedies.{alarm}: unknown action {action!r}.{nearest(str(action), get_args(Action))} "
                    f"Actions: {', '.join(get_args(Action))}, or {{set: {{KEY: VALUE}}}}"
                )
        ladders[alarm] = rungs
    return ladders


def _as_list(value: Any) -> list[Any]:
    """``value`` as a list; anything but a list or tuple becomes a list of one element."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_set(action: Any) -> bool:
    """Whether ``action`` has the form ``{set: {KEY: VALUE}}``."""
    return isinstance(action, SetAction) or (
        isinstance(action, Mapping) and set(action) == {"set"} and isinstance(action["set"], Mapping)
    )


Ladders = Annotated[dict[AlarmName, tuple[Rung, ...]], BeforeValidator(_ladders)]
