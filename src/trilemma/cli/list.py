"""``trilemma list``: the registered names. Reads only registries and the first lines of recipes, without torch."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Annotated, Any

from trilemma.cli.common import Json, argument, completed_by, percent, print_json, print_table
from trilemma.config import registry
from trilemma.config.chains import PRESETS
from trilemma.errors import UnknownNameError, nearest
from trilemma.printing import print_lines, print_message

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
# Not a kind of name, and too long to be listed with the others.
PUBLISHED = "published"


def list_(
    kind: Annotated[
        str | None,
        argument(
            "KIND",
            f"one of {', '.join(KINDS)}  [default: all of these], or {PUBLISHED}",
            autocompletion=completed_by(lambda: (*KINDS, PUBLISHED)),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists recipes, methods and names, and published results.

    \b
    Examples:
      trilemma list methods
      trilemma list recipes --json
      trilemma list published
    """
    if kind == PUBLISHED:
        _list_published(as_json)
        return
    if kind is not None and kind not in KINDS:
        known = (*KINDS, PUBLISHED)
        raise UnknownNameError(f"unknown kind {kind!r}.{nearest(kind, known)} Kinds: {', '.join(known)}")
    chosen = KINDS if kind is None else (kind,)
    rows_by_kind = {name: entries(name) for name in chosen}
    if as_json:
        print_json(rows_by_kind if kind is None else rows_by_kind[kind])
        return
    for name, rows in rows_by_kind.items():
        # Presets have a table of their own.
        columns = [key for key in rows[0] if key != "presets"] if rows else []
        used_columns = [key for key in columns if any(row[key] for row in rows)]
        print_table([{key: row[key] for key in used_columns} for row in rows], None if kind else name)
        if name == "samplers":
            print_table(
                [
                    {"preset": row["name"], "chain": row["chain"], "source": row["source"]}
                    for row in presets()
                ],
                "presets of `trilemma generate`",
            )


def _list_published(as_json: bool) -> None:
    """Prints the published leaderboards, a table each, or one JSON list, with its source on standard error."""
    from trilemma.evaluation.published import published, source

    if as_json:
        print_message(source())
        print_json([entry.record() for entry in published()])
        return
    print_lines(source())
    for (data, norm), board in groupby(published(), lambda entry: (entry.data, entry.norm)):
        rows = list(board)
        # The most frequent radius is that of the leaderboard; a few entries have 0.031 for 8/255.
        radius = Counter(entry.radius for entry in rows).most_common(1)[0][0]
        print_table(
            [
                {
                    "model": entry.model,
                    "clean": percent(entry.clean),
                    "robust": percent(entry.robust),
                    "network": _short(entry.architecture),
                }
                for entry in rows
            ],
            f"{data}, {norm} {radius}".rstrip(),
        )


def _short(architecture: str) -> str:
    """The name of an architecture as a table of 80 columns has room for it."""
    name, _, _ = architecture.partition(",")
    for long, short in (
        ("WideResNet", "WRN"),
        ("MeanSparse ", ""),
        (" + mixing network", ""),
        ("ResNet-152", "R152"),
        (" + ", "+"),
    ):
        name = name.replace(long, short)
    return name


def entries(kind: str) -> list[dict[str, Any]]:
    """Returns the rows of one kind: name, summary, paper and cost; also the presets of a sampler.

    Recipes have name, data, method, network and summary.
    """
    if kind == "recipes":
        return _recipes()
    rows = REGISTRIES[kind].rows()
    listed: list[dict[str, Any]] = [
        {"name": name, "summary": row.summary, "paper": row.paper, "cost": row.cost}
        for name, row in sorted(rows.items())
    ]
    if kind == "samplers":
        for row in listed:
            row["presets"] = [preset for preset in presets() if preset["sampler"] == row["name"]]
    return listed


def presets() -> list[dict[str, Any]]:
    """Returns one row per preset of samplers: its chain in words and in numbers, and its source."""
    rows = []
    for name, preset in PRESETS.items():
        chain = preset.chain()
        step = ", ".join(f"{key} {value:g}" for key, value in preset.step().items() if value)
        words = f"{preset.sampler} on {preset.energy} from {preset.start}, {preset.steps} steps, {step}"
        rows.append(
            {
                "name": name,
                "chain": f"{words}, with stopping" if preset.stop else words,
                "source": preset.source,
                "summary": preset.summary,
                **chain,
            }
        )
    return rows


def _recipes() -> list[dict[str, str]]:
    from trilemma.config.recipe import recipe_names, recipe_text, recipe_tree

    rows = []
    for name in recipe_names():
        # Without validation, which would import the method, and torch with it.
        tree, first = recipe_tree(name), recipe_text(name).splitlines()[0]
        rows.append(
            {
                "name": name,
                "data": _name(tree.get("data", "digits")),
                "method": _name(tree["method"]),
                "network": _name(tree["network"]),
                "summary": first.lstrip("# ") if first.startswith("#") else "",
            }
        )
    return rows


def _name(section: Any) -> str:
    """Returns the name of a config section, which may be given as the name alone."""
    return str(section["name"] if isinstance(section, dict) else section)
