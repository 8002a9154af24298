"""``key=value`` overrides with dotted keys: parsing, and setting them in the tree of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trilemma.config.yaml_text import parse_value
from trilemma.errors import ConfigError

# Characters of a value in a message.
_SHOWN = 60
# Sections that may be written as their name alone.
NAMED = ("data", "network", "method", "regulariser", "sampler", "update", "optimiser", "schedule")


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["training.lr=0.1", ...]`` as a flat dictionary of dotted keys.

    Raises:
        ConfigError: an entry without ``=`` or without a key, an ambiguous value, or two values for one key.
    """
    flat: dict[str, Any] = {}
    for entry in overrides:
        key, equals, text = entry.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"override {entry!r} is not of the form key=value, such as training.lr=0.1")
        value = parse_value(text, f"override {key}={text[:_SHOWN]}")
        if key in NAMED and isinstance(value, str):
            key = f"{key}.name"
        if key in flat and flat[key] != value:
            raise ConfigError(
                f"{key} is given twice on the command line, as {flat[key]} and as {value}; keep one"
            )
        flat[key] = value
    check_sections(flat)
    return flat


def check_sections(flat: Mapping[str, Any]) -> None:
    """Checks that no key is given a second time inside of its whole section, with another value.

    Raises:
        ConfigError: one is.
    """
    for key, value in flat.items():
        section, _, leaf = key.rpartition(".")
        whole = flat.get(section)
        if isinstance(whole, Mapping) and leaf in whole and whole[leaf] != value:
            raise ConfigError(
                f"{key} is given twice on the command line, as {whole[leaf]} in {section} and as {value}; keep one"
            )


def apply_overrides(tree: dict[str, Any], flat: Mapping[str, Any]) -> None:
    """Sets the dotted keys of ``flat`` in ``tree``; a new method or network name removes the options of the old one.

    Raises:
        ConfigError: a key below a single value.
    """
    # A section as a whole first, then names, so that neither removes a key that is given beside it.
    for dotted, value in sorted(
        flat.items(), key=lambda item: ("." in item[0], not item[0].endswith(".name"))
    ):
        *parents, leaf = dotted.split(".")
        node = tree
        for depth, parent in enumerate(parents):
            child = node.get(parent)
            if isinstance(child, str) and depth == 0 and parent in NAMED:
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


def merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the sections of another recipe merged into it, key by key.

    A section that is ``None`` in ``changes`` is removed, so that its defaults apply.
    """
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in base.items()}
    for name, section in changes.items():
        if section is None:
            merged.pop(name, None)
            continue
        if name in NAMED and isinstance(section, str):
            section = {"name": section}
        if isinstance(section, Mapping) and name in merged:
            apply_overrides(merged, {f"{name}.{key}": value for key, value in section.items()})
        else:
            merged[name] = section
    return merged
