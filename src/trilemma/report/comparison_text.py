"""The table of a comparison as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from trilemma.report.comparison_table import Column, Entry, Table
from trilemma.report.page import DASH

HEAD = ("run", "method", "checkpoint", "minutes")
# What a CSV and JSON reader gets of a row, beside the column's own facts.
PARTS = ("value", "lower", "upper")
INCOMPARABLE = "not comparable"


def cell(column: Column, row: Mapping[str, Any] | None) -> str:
    """``63.5 % (58.6 to 68.1)``, ``2.263``, or a dash."""
    if row is None:
        return DASH
    value, lower, upper = (row[part] for part in PARTS)
    if column.is_share:
        return f"{100 * value:.1f} %" + (
            f" ({100 * lower:.1f} to {100 * upper:.1f})" if lower is not None else ""
        )
    return f"{value:.4g}" + (f" ({lower:.4g} to {upper:.4g})" if lower is not None else "")


def head(entry: Entry) -> tuple[str, ...]:
    """The cells that say which classifier an entry is."""
    minutes = DASH if entry.minutes is None else f"{entry.minutes:.3g}"
    return entry.run, entry.method, entry.checkpoint, minutes


def as_markdown(table: Table) -> str:
    """A table with a column per protocol card, and a last one for what does not compare, if anything."""
    titles = [*HEAD, *("<br>".join(column.card) for column in table.columns)]
    lines = [titles, ["---"] * len(HEAD) + ["---:"] * len(table.columns)]
    lines += [
        [*head(entry), *(cell(column, entry.values.get(column)) for column in table.columns)]
        for entry in table.entries
    ]
    if incomparable(table):
        ends = [INCOMPARABLE, "---", *("; ".join(entry.notes) for entry in table.entries)]
        lines = [[*line, end] for line, end in zip(lines, ends, strict=True)]
    return "".join("| " + " | ".join(_escaped(part) for part in line) + " |\n" for line in lines)


def incomparable(table: Table) -> bool:
    """Whether the table needs a column for what does not compare."""
    return any(entry.notes for entry in table.entries)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_csv(table: Table) -> str:
    """One line per classifier; per protocol card the value and its 95 % interval, shares in [0, 1]."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    cards = [" | ".join(column.card) for column in table.columns]
    writer.writerow([*HEAD, *(f"{card} | {part}" for card in cards for part in PARTS), INCOMPARABLE])
    for entry in table.entries:
        rows = [entry.values.get(column) for column in table.columns]
        values = [None if row is None else row[part] for row in rows for part in PARTS]
        writer.writerow(
            [entry.run, entry.method, entry.checkpoint, entry.minutes, *values, "; ".join(entry.notes)]
        )
    return text.getvalue()


def as_tree(table: Table) -> dict[str, Any]:
    """``columns`` with the protocol card of each, and ``rows`` whose ``values`` are in the order of the columns."""
    names = ("protocol", "version", "quantity", "better", "threat", "count", "data")
    return {
        "columns": [{name: getattr(column, name) or None for name in names} for column in table.columns],
        "rows": [
            {
                "run": entry.run,
                "path": entry.path,
                "method": entry.method,
                "checkpoint": entry.checkpoint,
                "minutes": entry.minutes,
                "values": [_value(entry.values.get(column)) for column in table.columns],
                "not_comparable": list(entry.notes),
            }
            for entry in table.entries
        ],
    }


def _value(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {key: row.get(key) for key in (*PARTS, "seed", "seconds")}
