"""``trilemma list``: the registered names. Reads only registries and the first lines of recipes, without torch."""

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
    kind: Annotated[str | None, argument("KIND", f"one of {', '.join(KINDS)}  [default: all]")] = None,
    as_json: Json = False,
) -> None:
    """Lists recipes, methods, protocols and other names.

    \b
    Examples:
      trilemma list methods
      trilemma list recipes --json
    """
    if kind is not None and kind not in KINDS:
        raise UnknownNameError(f"unknown kind {kind!r}.{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}")
    chosen = KINDS if kind is None else (kind,)
    rows_by_kind = {name: entries(name) for name in chosen}
    if as_json:
        print_json(rows_by_kind if kind is None else rows_by_kind[kind])
        return
    for name, rows in rows_by_kind.items():
        used_columns = [key for key in rows[0] if any(row[key] for row in rows)] if rows else []
        print_table([{key: row[key] for key in used_columns} for row in rows], None if kind else name)


def entries(kind: str) -> list[dict[str, str]]:
    """Returns the rows of one kind: name, summary, paper and cost; data, method and network for recipes."""
    if kind == "recipes":
        return _recipes()
    rows = REGISTRIES[kind].rows()
    return [
        {"name": name, "summary": row.summary, "paper": row.paper, "cost": row.cost}
        for name, row in sorted(rows.items())
    ]


def _recipes() -> list[dict[str, str]]:
    from trilemma.config.recipe import recipe_names, recipe_text, recipe_tree

    rows = []
    for name in recipe_names():
        # Without validation, which would import the method, and torch with it.
        tree, first = recipe_tree(name), recipe_text(name).splitlines()[0]
        rows.append(
            {
                "name": name,
                "summary": first.lstrip("# ") if first.startswith("#") else "",
                "data": _name(tree.get("data", "digits")),
                "method": _name(tree["method"]),
                "network": _name(tree["network"]),
            }
        )
    return rows


def _name(section: Any) -> str:
    """Returns the name of a config section, which may be given as the name alone."""
    return str(section["name"] if isinstance(section, dict) else section)
