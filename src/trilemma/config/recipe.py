"""Loading a configuration from a recipe (a packaged name or a YAML file) and ``key=value`` overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trilemma.config.config import Config, SharedConfig
from trilemma.config.registry import METHODS, NETWORKS
from trilemma.config.remedies import SetAction
from trilemma.errors import ConfigError, UnknownNameError, nearest

_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as ``digits/eb-jdat``."""
    root = resources.files("trilemma") / "recipes"
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def recipe_text(recipe: str) -> str:
    """The YAML of a packaged recipe or of a file.

    Raises:
        UnknownNameError: neither a packaged name nor a file.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UnknownNameError(
                f"recipe file {recipe} does not exist; `trilemma list recipes` shows the packaged recipes"
            )
        return path.read_text(encoding="utf-8")
    names = recipe_names()
    if recipe not in names:
        raise UnknownNameError(
            f"unknown recipe {recipe!r}.{nearest(recipe, names)} `trilemma list recipes` shows all; "
            "a path must end in .yaml"
        )
    folder, _, file = recipe.partition("/")
    return (resources.files("trilemma") / "recipes" / folder / f"{file}.yaml").read_text(encoding="utf-8")


def _scalar(text: str) -> Any:
    """One override value, parsed as YAML, except that ``1e-4`` is a number (YAML 1.1 reads it as text)."""
    try:
        return float(text) if _FLOAT.match(text) else yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override value {text!r} is not valid YAML; quote it") from None


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["training.lr=0.1", ...]`` as a flat dictionary of dotted keys.

    Raises:
        ConfigError: an entry without ``=`` or without a key.
    """
    flat: dict[str, Any] = {}
    for entry in overrides:
        key, equals, value = entry.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {entry!r} is not of the form key=value, such as training.lr=0.1")
        flat[key.strip()] = _scalar(value)
    return flat


def _apply(tree: dict[str, Any], flat: Mapping[str, Any]) -> None:
    """Sets the dotted keys of ``flat`` in ``tree``; a new method or network name removes the options of the old one."""
    # Names first, so that a new name removes the old options but none of the options in ``flat``.
    for dotted, value in sorted(flat.items(), key=lambda item: not item[0].endswith(".name")):
        *parents, leaf = dotted.split(".")
        node = tree
        for depth, parent in enumerate(parents):
            child = node.get(parent)
            if isinstance(child, str) and parent in ("method", "network", "regulariser", "update"):
                child = {"name": child}
            elif child is None:
                child = {}
            if not isinstance(child, dict):
                where = ".".join(parents[: depth + 1])
                raise ConfigError(f"{dotted}: {where} is a single value, not a section with keys")
            node[parent] = node = child
        if leaf == "name" and parents in (["method"], ["network"]) and node.get("name") not in (None, value):
            node.clear()
        node[leaf] = value


def _allowed(location: tuple[Any, ...], tree: Any) -> list[str]:
    """The keys allowed in the section that holds ``location``, for the message about an unknown key."""
    model: Any = Config
    for part in location[:-1]:
        name = tree.get(part, {}).get("name") if isinstance(tree.get(part), dict) else None
        if part == "method" and name:
            model = METHODS.options(name)
        elif part == "network" and name:
            model = NETWORKS.options(name)
        else:
            annotation = model.model_fields[part].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            model = next(c for c in candidates if hasattr(c, "model_fields"))
    return list(model.model_fields)


def _one_line(error: ValidationError, tree: Any) -> str:
    """The first of pydantic's errors as one line, with the number of further errors."""
    details = error.errors(include_url=False)
    first = details[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location) or "recipe"
    if first["type"] == "extra_forbidden":
        allowed = _allowed(location, tree)
        text = f"{key}: unknown key.{nearest(str(location[-1]), allowed)} Allowed here: {', '.join(allowed)}"
    elif first["type"] == "missing":
        text = f"{key}: missing; every recipe needs it"
    else:
        message = first["msg"].removeprefix("Value error, ")
        text = f"{key}: {message}; got {first['input']!r}"
    return text + (f" (and {len(details) - 1} more)" if len(details) > 1 else "")


def _check_names(tree: Mapping[str, Any]) -> None:
    """Checks that method and network are registered, without importing any of them.

    Raises:
        UnknownNameError: no registry row has the name.
    """
    for section, registry in (("network", NETWORKS), ("method", METHODS)):
        value = tree[section]
        name = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(name, str):
            registry.row(name)


def build_config(tree: Mapping[str, Any], where: str = "config") -> Config:
    """Validates a tree of sections and returns the configuration.

    Args:
        tree: section name to value, as read from YAML.
        where: recipe name or path, the beginning of every error message.

    Raises:
        ConfigError: an invalid key or value; the message has the key, the value, what is allowed and the nearest name.
        UnknownNameError: an unknown method or network.
    """
    shared = {name: value for name, value in tree.items() if name not in ("network", "method")}
    try:
        # The sections that need no method and no network come first: an error in them is found without importing torch.
        if "method" in tree and "network" in tree:
            SharedConfig.model_validate(shared)
            _check_names(tree)
        config = Config.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error, tree)}") from None
    except (ConfigError, UnknownNameError) as error:
        raise type(error)(f"{where}: {error}") from None
    for alarm, ladder in config.monitors.remedies.items():
        options: dict[str, Any] = {}
        for action in (action for rung in ladder for action in rung if isinstance(action, SetAction)):
            options |= action.set
            # Validates the keys of the remedy now, not when its alarm fires during training.
            with_options(config, options, f"{where}: monitors.remedies.{alarm}")
    return config


def with_options(config: Config, options: Mapping[str, Any], where: str = "config") -> Config:
    """A copy of ``config`` with some dotted keys changed, validated again; the ``monitors`` section is kept unchanged.

    Args:
        config: a valid configuration.
        options: dotted key to new value.
        where: the beginning of every error message.

    Raises:
        ConfigError: an invalid key or value; the message has the key.
        UnknownNameError: an unknown method or network.
    """
    tree = {**config.model_dump(mode="json"), "monitors": {}}
    _apply(tree, options)
    return build_config(tree, where).model_copy(update={"monitors": config.monitors})


def load_config(recipe: str, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
    """Loads a recipe, applies overrides and returns the validated configuration.

    Args:
        recipe: a packaged name (``digits/eb-jdat``) or the path of a YAML file.
        overrides: ``{"training.lr": 0.1}`` or ``["training.lr=0.1"]``.

    Raises:
        UnknownNameError: no such recipe.
        ConfigError: unknown key, wrong type or impossible combination.
    """
    try:
        tree = yaml.safe_load(recipe_text(recipe))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{recipe}:{line} is not valid YAML: {getattr(error, 'problem', 'cannot be read')}; correct it"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{recipe}: a recipe is a YAML mapping of sections such as data, network, method")
    _apply(tree, overrides if isinstance(overrides, Mapping) else parse_overrides(overrides))
    return build_config(tree, recipe)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, loadable by :func:`load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
