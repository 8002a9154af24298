"""Loading a configuration from a recipe (a packaged name or a YAML file), its ``base`` and ``key=value`` overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trilemma.config.config import Config, SharedConfig
from trilemma.config.mistakes import one_line
from trilemma.config.overrides import apply_overrides, merge, parse_overrides
from trilemma.config.registry import METHODS, NETWORKS
from trilemma.config.remedies import SetAction
from trilemma.config.yaml_text import parse_yaml, read_text
from trilemma.errors import ConfigError, UnknownNameError, nearest

# The key of a recipe that names the recipe it changes.
BASE = "base"


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
        ConfigError: a file that cannot be read, or is not UTF-8.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        if not _is_file(path):
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UnknownNameError(
                f"recipe file {recipe} {what}; `trilemma list recipes` shows the packaged recipes"
            )
        return read_text(path)
    names = recipe_names()
    if recipe not in names:
        raise UnknownNameError(
            f"unknown recipe {recipe!r}.{nearest(recipe, names)} `trilemma list recipes` shows all; "
            "a path must end in .yaml"
        )
    folder, _, file = recipe.partition("/")
    return (resources.files("trilemma") / "recipes" / folder / f"{file}.yaml").read_text(encoding="utf-8")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # A name that the file system cannot hold.
        return False


def recipe_tree(recipe: str, derived: tuple[str, ...] = ()) -> dict[str, Any]:
    """The sections of a recipe as written, merged into those of the recipe that its key ``base`` names.

    Args:
        recipe: a packaged name or the path of a YAML file.
        derived: the recipes that have this one as their base, for the message about a circle.

    Raises:
        UnknownNameError: no such recipe.
        ConfigError: not a YAML mapping of sections, or recipes that are based on each other.
    """
    tree = parse_yaml(recipe_text(recipe), recipe)
    if not isinstance(tree, dict):
        raise ConfigError(f"{recipe}: a recipe is a YAML mapping of sections such as data, network, method")
    if dotted := next((key for key in tree if "." in key), None):
        section, _, key = dotted.partition(".")
        raise ConfigError(
            f"{recipe}: {dotted}: keys with dots are for the command line; in a file write {section}: {{{key}: ...}}"
        )
    if BASE not in tree:
        return tree
    base = tree.pop(BASE)
    if not isinstance(base, str):
        raise ConfigError(f"{recipe}: base: {base!r} is not the name or the path of a recipe")
    beside = Path(recipe).parent / base
    if base not in recipe_names() and (base.endswith((".yaml", ".yml")) or _is_file(beside)):
        base = str(beside)
    chain = (*derived, recipe)
    if any(same_recipe(base, earlier) for earlier in chain):
        raise ConfigError(
            f"{recipe}: base: recipes are based on each other ({' -> '.join([*chain, base])}); change the base of one "
            "of them"
        )
    try:
        return merge(recipe_tree(base, chain), tree)
    except UnknownNameError as error:
        raise UnknownNameError(f"{recipe}: base: {error}") from None


def same_recipe(first: str, second: str) -> bool:
    """Whether two names or paths are of one recipe."""
    return first == second or (Path(first).is_file() and Path(first).resolve() == Path(second).resolve())


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
        raise ConfigError(f"{where}: {one_line(error, tree)}") from None
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
    apply_overrides(tree, options)
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
    tree = recipe_tree(recipe)
    flat = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    if BASE in flat:
        raise ConfigError(
            f"{BASE}={flat[BASE]}: a base is a key of recipe files; train the other recipe instead"
        )
    apply_overrides(tree, flat)
    return build_config(tree, recipe)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, loadable by :func:`load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def lasting_config(config: Config) -> dict[str, Any]:
    """The resolved configuration by dotted key, without what a resumed run may change: devices and the time limit."""
    flat = flatten_config(config)
    # Neither of these changes the result of a step.
    return {key: flat[key] for key in flat if key not in ("devices", "training.max_minutes")}


def flatten_config(config: Config) -> dict[str, Any]:
    """The resolved configuration by dotted key; an absent section is one key with ``None``."""
    flat: dict[str, Any] = {}
    for name, section in config.model_dump(mode="json").items():
        if isinstance(section, dict):
            flat |= {f"{name}.{key}": value for key, value in section.items()}
        else:
            flat[name] = section
    return flat
