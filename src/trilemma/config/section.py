"""The base class of every section of a configuration, and options classes derived from a function's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from trilemma.errors import ConfigError
from trilemma.units import DECIMAL, check_size, parse_fraction

# Parameters of a network that are determined by the data, and are therefore not options.
_FROM_THE_DATA = ("num_classes", "in_channels", "image_shape")


class Section(BaseModel):
    """Base class of every section of a configuration: frozen, and unknown keys are errors.

    A section that has a ``name`` may be given as the name alone. Truth values are not numbers, nor numbers truth
    values, and a number given as a text is a decimal number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) and "name" in cls.model_fields else value

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses a value that pydantic would convert to another one: ``True`` to 1, ``"010"`` to 10, 1 to ``True``."""
        assert info.field_name is not None
        kinds = set(_kinds(cls.model_fields[info.field_name].annotation))
        for item in value if isinstance(value, list | tuple) else (value,):
            _check_scalar(item, kinds)
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The classes in an annotation, and the classes of its literals; of a mapping only the class itself."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from (type(value) for value in get_args(annotation))
    elif origin is None or origin is dict:
        yield origin or annotation
    else:
        for part in get_args(annotation):
            yield from _kinds(part)


def _check_scalar(value: Any, kinds: set[Any]) -> None:
    """Raises ``ValueError`` if ``value`` has another kind than the field and pydantic would convert it."""
    numeric, logical = bool(kinds & {int, float}), bool in kinds
    if isinstance(value, bool):
        if numeric and not logical:
            raise ValueError("is a truth value, not a number")
    elif isinstance(value, int | float):
        if logical and not numeric:
            raise ValueError("is a number; write true or false")
        check_size(value)
    elif isinstance(value, str):
        text = value.strip()
        if numeric and _reads_as_number(text) and not DECIMAL.fullmatch(text):
            raise ValueError("is not a decimal number")
        if numeric and DECIMAL.fullmatch(text):
            parse_fraction(text)
        if logical and str not in kinds and text.lower() not in ("true", "false"):
            raise ValueError("is not a truth value; write true or false")


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class OpenSection(Section):
    """A section with keys that no class declares."""

    model_config = ConfigDict(extra="allow")


def section_of(function: Callable[..., Any], name: str, registered: bool = True) -> type[Section]:
    """Creates an options class for a network that has none, from the parameters of its function.

    Args:
        function: takes the options, and ``num_classes``, ``in_channels`` and ``image_shape`` where it has them.
        name: name of the registry row, or ``MODULE:FUNCTION``.
        registered: parameters need type annotations, and ``*args`` and ``**kwargs`` are refused; otherwise any value is
            passed on.

    Raises:
        ConfigError: a parameter of a registered function that cannot be validated.
    """
    # The hints of a class are those of its attributes, not of its constructor.
    constructs = isinstance(function, type) and not registered
    hints = get_type_hints(vars(function).get("__init__", function) if constructs else function)
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    base = Section
    for parameter in signature(function).parameters.values():
        variable = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if parameter.name in _FROM_THE_DATA:
            continue
        if not registered and variable:
            base = OpenSection if parameter.kind is Parameter.VAR_KEYWORD else base
            continue
        if registered and (parameter.name not in hints or variable):
            raise ConfigError(
                f"network {name!r}: its parameter {parameter.name!r} needs a type, so that a recipe can be checked; "
                "write one, or give the registry row an options class"
            )
        default = ... if parameter.default is Parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    return create_model(f"{name} options", __base__=base, **fields)
