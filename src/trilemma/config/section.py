"""The base class of every section of a configuration, and options classes derived from a function's signature."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from trilemma.errors import ConfigError

# Parameters of a network that are determined by the data, and are therefore not options.
_FROM_THE_DATA = ("num_classes", "in_channels")


class Section(BaseModel):
    """Base class of every section of a configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def section_of(function: Callable[..., Any], name: str) -> type[Section]:
    """Creates an options class for a network that has none, from the typed parameters of its function.

    Args:
        function: takes ``num_classes``, ``in_channels`` and the options, all with type annotations.
        name: name of the registry row.

    Raises:
        ConfigError: a parameter without a type annotation, or ``*args`` or ``**kwargs``, which cannot be validated.
    """
    hints = get_type_hints(function)
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    for parameter in signature(function).parameters.values():
        if parameter.name in _FROM_THE_DATA:
            continue
        if parameter.name not in hints or parameter.kind in (
            Parameter.VAR_POSITIONAL,
            Parameter.VAR_KEYWORD,
        ):
            raise ConfigError(
                f"network {name!r}: its parameter {parameter.name!r} needs a type, so that a recipe can be checked; "
                "write one, or give the registry row an options class"
            )
        default = ... if parameter.default is Parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    return create_model(f"{name} options", __base__=Section, **fields)
