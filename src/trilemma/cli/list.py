"""``trilemma list``: the names there are. Reads registries and recipe heads only, so it needs no torch."""

from __future__ import annotations

from typing import Annotated, Any

from trilemma.cli.common import Json, argument, print_json, print_table
from trilemma.config import registry
from trilemma.errors import UnknownNameError, nearest

REGISTRIES = {
    "methods": registry.METHODS,
    "attacks": registry.ATTACKS,
    "samplers": registry.SAMPLERS,
    "starts": registry.STARTS,
    "datasets": registry.DATASETS,
    "networks": registry.NETWORKS,
    "protocols": registry.PROTOCOLS,
}
KINDS = ("recipes", *REGISTRIES)


def list_(
    kind: Annotated[str | None, argument("KIND", f"one of {', '.join(KINDS)}; all by default")] = None,
    as_json: Json = False,
) -> None:
    """Lists recipes, methods, protocols and the rest.

    \b
    Examples:
      trilemma list methods
      trilemma list recipes --json
    """
    if kind is not None and kind not in KINDS:
        raise UnknownNameError(f"unknown kind {kind!r}.{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}")
    chosen = KINDS if kind is None else (kind,)
    listed = {name: entries(name) for name in chosen}
    if as_json:
        print_json(listed if kind is None else listed[kind])
        return
    for name, rows in listed.items():
        shown = [key for key in rows[0] if any(row[key] for row in rows)] if rows else []
        print_table([{key: row[key] for key in shown} for row in rows], None if kind else name)


def entries(kind: str) -> list[dict[str, str]]:
    """The rows of one kind: name, summary, and paper and cost (or data, method and network of a recipe)."""
    if kind == "recipes":
        return _recipes()
    rows = REGISTRIES[kind].rows()
    return [
        {"name": name, "summary": row.summary, "paper": row.paper, "cost": row.cost}
        for name, row in sorted(rows.items())
    ]


def _recipes() -> list[dict[str, str]]:
    import yaml

    from trilemma.config.recipe import recipe_names, recipe_text

    found = []
    for name in recipe_names():
        # the file itself: validating it would import the method, and torch with it
        text = recipe_text(name)
        tree, first = yaml.safe_load(text), text.splitlines()[0]
        found.append(
            {
                "name": name,
                "summary": first.lstrip("# ") if first.startswith("#") else "",
                "data": tree.get("data", {}).get("name", "digits"),
                "method": _name(tree["method"]),
                "network": _name(tree["network"]),
            }
        )
    return found


def _name(section: Any) -> str:
    """The name of a section, which may be written as the name alone."""
    return str(section["name"] if isinstance(section, dict) else section)
