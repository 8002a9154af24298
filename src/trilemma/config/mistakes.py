"""What is wrong in a configuration as one line: the key, the value, what is allowed, and the nearest key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from trilemma.config.config import Config
from trilemma.config.registry import METHODS, NETWORKS
from trilemma.errors import TrilemmaError, closest, nearest
from trilemma.printing import quoted


def one_line(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The first of pydantic's errors as one line, with the number of further errors.

    Args:
        error: of the validation of ``tree``.
        tree: section name to value.
    """
    details = error.errors(include_url=False)
    first = details[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location) or "recipe"
    if first["type"] == "extra_forbidden":
        allowed = list(_section_class(location[:-1], tree).model_fields)
        text = (
            f"{key}: unknown key.{_did_you_mean(location, allowed, tree)} Allowed here: {', '.join(allowed)}"
        )
    elif first["type"] == "missing":
        text = f"{key}: missing; every recipe needs it"
    else:
        message = first["msg"].removeprefix("Value error, ")
        text = f"{key}: {message}; got {quoted(first['input'])}"
    return text + (f" (and {len(details) - 1} more)" if len(details) > 1 else "")


def _section_class(location: Iterable[Any], tree: Mapping[str, Any]) -> Any:
    """The class of the section at ``location``."""
    model: Any = Config
    for part in location:
        name = _name(tree, part)
        if part == "method" and name:
            model = METHODS.options(name)
        elif part == "network" and name:
            model = NETWORKS.options(name)
        else:
            model = _model_of(model.model_fields[part].annotation)
    return model


def _model_of(annotation: Any) -> Any:
    """The section class in an annotation, or ``None``."""
    return next((part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields")), None)


def _name(tree: Mapping[str, Any], section: str) -> str | None:
    """The name in a section of ``tree`` that may be written as the name alone."""
    value = tree.get(section)
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


def _did_you_mean(location: tuple[Any, ...], allowed: list[str], tree: Mapping[str, Any]) -> str:
    """A suggestion for an unknown key: a similar key of its section, the same key of another one, or a similar key."""
    leaf = str(location[-1])
    if len(location) > 1 and (similar := nearest(leaf, allowed)):
        return similar
    dotted = {key: key for key in allowed} if len(location) == 1 else {}
    for keys in _dotted_keys(tree):
        if same := [key for key in keys if key.rpartition(".")[2] == leaf]:
            return f" Did you mean {' or '.join(map(repr, same))}?"
        for key in keys:
            dotted.setdefault(key.rpartition(".")[2], key)
    match = closest(leaf, dotted)
    return f" Did you mean {dotted[match]!r}?" if match else ""


def _shared_sections() -> dict[str, Any]:
    """The classes of the sections that are the same for every method and network, by name."""
    classes = {name: _model_of(field.annotation) for name, field in Config.model_fields.items()}
    # The class of method and network is a base class, which has no options of its own.
    return {name: model for name, model in classes.items() if model and name not in ("network", "method")}


def shared_keys() -> list[str]:
    """All dotted keys but the options of methods and networks."""
    keys = [f"{name}.{key}" for name, model in _shared_sections().items() for key in model.model_fields]
    return [*keys, "method.name", "network.name", "devices"]


def _dotted_keys(tree: Mapping[str, Any]) -> Iterator[list[str]]:
    """All keys of a recipe: of its sections, of its network, of its method, and of optional sections that it lacks.

    In this order, and one list at a time, since the options of a method import torch.
    """
    chosen = {"network": NETWORKS, "method": METHODS}
    shared = _shared_sections()
    lacking = [name for name in shared if name not in tree and Config.model_fields[name].default is None]
    yield [
        f"{name}.{key}" for name, model in shared.items() if name not in lacking for key in model.model_fields
    ]
    for section, registry in chosen.items():
        name = _name(tree, section)
        try:
            options = registry.options(name) if name else None
        except TrilemmaError:
            # An unknown or unfit name is another mistake than the one to be reported.
            continue
        if options is not None:
            yield [f"{section}.{key}" for key in options.model_fields]
    yield [f"{name}.{key}" for name in lacking for key in shared[name].model_fields]
