"""Table of several runs as text: terminal, Markdown, CSV, LaTeX, JSON.

A column is one quantity under one protocol, on the same images with the same threat model; :mod:`trilemma.pages.gather`
makes the table from runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilemma.figures.labels import one_line
from trilemma.pages.words import DASH, NOT_ABOVE, not_above_chance, percent
from trilemma.runs.read import Record
from trilemma.runs.records import is_stale
from trilemma.tables import Records, csv_lines, data_frame, markdown_cell

# Quantities of generated images from ``trilemma generate``; the distance is divided by that of real test images.
NAMED, DISTANCE = "named as their class", "distance, of real"
# First word of the protocol of accuracies on held-out images, which selected the checkpoint.
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Column:
    """The properties that all values of a column share; only values of one column are comparable.

    Attributes:
        protocol, version: identify the protocol card.
        quantity: ``accuracy`` or another quantity; shares are in [0, 1].
        better: ``higher`` or ``lower``.
        threat: threat model as text, or empty.
        count: number of images.
        data: name, split and selection of the images, as text.
        purified: whether images were purified before they were classified.
        chance: the accuracy of one answer for every one of these images; ``None`` if no row of the column records it.
    """

    protocol: str
    version: int
    quantity: str
    better: str
    threat: str
    count: int
    data: str
    purified: bool = False
    chance: float | None = field(default=None, compare=False)

    @property
    def is_accuracy(self) -> bool:
        """Whether values are shares of correct answers."""
        return self.quantity == "accuracy"

    @property
    def is_share(self) -> bool:
        """Whether values are shares of images, with Wilson intervals, displayed in per cent."""
        return self.quantity in ("accuracy", "balanced accuracy", NAMED)

    @property
    def card(self) -> tuple[str, ...]:
        """The protocol in a few short lines, for the column heading."""
        name = f"{self.protocol} v{self.version}"
        quantity = f"{self.quantity}, {self.better} is better"
        chance = "" if self.chance is None else f"chance: {percent(self.chance)}"
        return tuple(text for text in (name, quantity, self.threat, self.data, chance) if text)


@dataclass(frozen=True)
class Entry:
    """One classifier of one run, or of runs that differ by their training seed only.

    Attributes:
        run: name of the run or the runs.
        path: folder of the run, or of the first one.
        run_index: index of the run, or of the group of runs, among those compared.
        checkpoint: ``best`` or ``last``, and its epoch.
        minutes: training time, or ``None`` if unknown; of several runs the mean.
        values: column to result row (``value``, ``lower``, ``upper``, ``seed`` and others). Of several runs: ``value``
            is the mean, and ``std`` (with n - 1), ``min``, ``max`` and ``runs`` (number of runs) are set, ``lower`` and
            ``upper`` are ``None``.
        notes: protocols in which it is not comparable with most other entries, and the settings that differ.
        seeds: training seeds; empty if unknown.
    """

    run: str
    path: str
    run_index: int
    method: str
    checkpoint: str
    minutes: float | None
    values: Mapping[Column, Record]
    notes: tuple[str, ...]
    seeds: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The name, with the number of seeds if there are several."""
        return f"{self.run} ({len(self.seeds)} seeds)" if len(self.seeds) > 1 else self.run


@dataclass(frozen=True, repr=False)
class Table:
    """Columns, clean accuracy first, and one entry per classifier; prints itself with one row per value."""

    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]

    def by_value(self) -> Records:
        """One row of texts per value, because one column per protocol would not fit a screen."""
        return Records(
            {
                "protocol": f"{column.protocol} v{column.version}" if number == 0 else "",
                "run": self._distinct_title(entry),
                "result": cell(column, entry.values[column]).replace(f", {NOT_ABOVE}", " ≤ chance"),
                "threat": (column.threat or DASH) if number == 0 else "",
                "checkpoint": entry.checkpoint,
                "images": column.data if number == 0 else "",
                "quantity": f"{column.quantity}, {column.better} is better" if number == 0 else "",
                "path": entry.path,
            }
            for column in self.columns
            for number, entry in enumerate(entry for entry in self.entries if column in entry.values)
        )

    def _distinct_title(self, entry: Entry) -> str:
        """The title of an entry, with ``@last`` for the last checkpoint beside the best one."""
        first = next(other for other in self.entries if other.run_index == entry.run_index)
        return entry.title if entry is first else f"{entry.title}@last"

    def to_markdown(self) -> str:
        """The table as Markdown, with a column per protocol."""
        return as_markdown(self)

    def to_csv(self) -> str:
        """The table as CSV, with the value and the 95 % interval of each protocol."""
        return as_csv(self)

    def to_latex(self, bold: bool = False) -> str:
        """The table as LaTeX for the package booktabs; with ``bold``, the best value of each column in bold."""
        return as_latex(self, bold)

    @property
    def grouped(self) -> bool:
        """Whether an entry stands for several runs."""
        return any(len(entry.seeds) > 1 for entry in self.entries)

    @property
    def names(self) -> list[str]:
        """A short name of each column, distinct among them: letters, digits and underscores, such as ``pgd_20``."""
        return _column_names(self.columns)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row per value: run, checkpoint, protocol, quantity, value and interval.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame(
            {
                "run": entry.path, "method": entry.method, "checkpoint": entry.checkpoint,
                "protocol": column.protocol, "quantity": column.quantity, "threat": column.threat,
                "data": column.data, "seeds": " ".join(map(str, entry.seeds)),
                **{part: entry.values[column].get(part) for part in (*PARTS, *SPREAD)},
            }
            for column in self.columns
            for entry in self.entries
            if column in entry.values
        )  # fmt: skip

    def __repr__(self) -> str:
        return repr(self.by_value())

    def _repr_html_(self) -> str:
        return self.by_value()._repr_html_()


# Protocols with longer names, which state what samples they are of, are named by their quantity.
LONGEST_PROTOCOL = 24
HEAD = ("run", "method", "checkpoint", "minutes")
# Fields of a result row in CSV and JSON output, besides the properties of its column.
PARTS = ("value", "lower", "upper")
# Further fields of a mean over training seeds.
SPREAD = ("std", "min", "max", "runs")
SEEDS_NOTE = "Mean ± standard deviation over training seeds; brackets: range. Of one run: 95 % interval."
INCOMPARABLE = "not comparable"
STALE_NOTE = "stale, measured on another classifier than the folder holds; evaluate again"


def cell(column: Column, row: Mapping[str, Any] | None) -> str:
    """Returns the text of a table cell: ``63.5 % (58.6 to 68.1)``, ``2.263``, or a dash; a mark if not above chance.

    A mean over training seeds is ``63.5 % ± 1.2 (62.1 to 64.7)``.
    """
    return DASH if row is None else " ".join(cell_parts(column, row))


def cell_parts(column: Column, row: Mapping[str, Any]) -> list[str]:
    """Returns the text of a cell in the parts between which it may be wrapped: value, interval or range, remarks."""
    number: Callable[[float], str] = (
        (lambda value: f"{100 * value:.1f}") if column.is_share else "{:.4g}".format
    )
    value = number(row["value"]) + (" %" if column.is_share else "")
    parts = [f"{value} ± {number(row['std'])}" if "std" in row else value]
    spread = with_range(row)
    if spread["lower"] is not None:
        parts.append(f"({number(spread['lower'])} to {number(spread['upper'])})")
    remarks = [NOT_ABOVE] if not_above_chance(row) else []
    if is_stale(row):
        remarks.append("stale")
    if row.get("of", 1) > row.get("runs", 1):
        remarks.insert(0, f"{row.get('runs', 1)} of {row['of']} seeds")
    for remark in remarks:
        parts[-1] += ","
        parts.append(remark)
    return parts


def with_range(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row to draw: of a mean over training seeds, ``lower`` and ``upper`` are the range of the values."""
    return {**row, "lower": row["min"], "upper": row["max"]} if "std" in row else dict(row)


def head(entry: Entry) -> tuple[str, ...]:
    """Returns the cells that identify the classifier of an entry."""
    minutes = DASH if entry.minutes is None else f"{entry.minutes:.3g}"
    return entry.title, entry.method, entry.checkpoint, minutes


def as_markdown(table: Table) -> str:
    """Returns the table as Markdown, with a last column for notes on comparability if there are any."""
    titles = [*HEAD, *("<br>".join(map(markdown_cell, column.card)) for column in table.columns)]
    lines = [titles, ["---"] * len(HEAD) + ["---:"] * len(table.columns)]
    lines += [
        [
            *map(markdown_cell, head(entry)),
            *(cell(column, entry.values.get(column)) for column in table.columns),
        ]
        for entry in table.entries
    ]
    if incomparable(table):
        notes = [INCOMPARABLE, "---", *(markdown_cell("; ".join(entry.notes)) for entry in table.entries)]
        lines = [[*line, note] for line, note in zip(lines, notes, strict=True)]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{text}\n{SEEDS_NOTE}\n" if table.grouped else text


def incomparable(table: Table) -> bool:
    """Returns whether an entry has a note on comparability."""
    return any(entry.notes for entry in table.entries)


def as_csv(table: Table) -> str:
    """Returns the table as CSV: a line per classifier, with the value and 95 % interval of each column.

    Columns have short names: ``pgd_20``, ``pgd_20_lower``, ``pgd_20_upper``, ``pgd_20_data``, ``pgd_20_threat``; with
    several training seeds also ``pgd_20_std``, ``_min``, ``_max`` and ``_runs``.
    """
    parts = (*PARTS, *SPREAD) if table.grouped else PARTS
    titles = [*HEAD, "seeds"]
    for name, column in zip(table.names, table.columns, strict=True):
        titles += [name if part == "value" else f"{name}_{part}" for part in parts]
        titles += [f"{name}_{key}" for key in _conditions(column)]
    lines: list[list[object]] = [[*titles, "not_comparable"]]
    for entry in table.entries:
        line: list[object] = [entry.run, entry.method, entry.checkpoint, entry.minutes]
        line.append(" ".join(map(str, entry.seeds)))
        for column in table.columns:
            row, conditions = entry.values.get(column), _conditions(column)
            line += [None if row is None else row.get(part) for part in parts]
            line += [None if row is None else value for value in conditions.values()]
        lines.append([*line, "; ".join(entry.notes)])
    return csv_lines(lines)


def _conditions(column: Column) -> dict[str, str]:
    """Returns what the values of a column were measured on, by the ending of its name in CSV."""
    return {"data": column.data} | ({"threat": column.threat} if column.threat else {})


def _column_names(columns: Sequence[Column]) -> list[str]:
    """Returns a name per column: the protocol, or the quantity if that is long, and what distinguishes equal names."""
    parts = [
        [column.protocol if len(column.protocol) <= LONGEST_PROTOCOL else column.quantity]
        for column in columns
    ]
    for field_name in ("protocol", "threat", "data", "version", "quantity"):
        values_by_name: dict[str, set[object]] = {}
        names = [_slug(" ".join(texts)) for texts in parts]
        for name, column in zip(names, columns, strict=True):
            values_by_name.setdefault(name, set()).add(getattr(column, field_name))
        for name, column, texts in zip(names, columns, parts, strict=True):
            if len(values_by_name[name]) > 1:
                texts.append(str(getattr(column, field_name)))
    names = [_slug(" ".join(texts)) for texts in parts]
    counts = Counter(names)
    return [f"{name}_{index}" if counts[name] > 1 else name for index, name in enumerate(names)]


def _slug(text: str) -> str:
    """Returns lower-case letters, digits and single underscores of a text."""
    plain = text.replace("L\N{INFINITY}, radius", "linf").replace("L2, radius", "l2").lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_") or "value"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "\N{INFINITY}": r"$\infty$", DASH: "--",
}  # fmt: skip


def latex_escaped(text: str) -> str:
    """Returns the text in one line for LaTeX; letters outside of ASCII are left as they are."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def as_latex(table: Table, bold: bool = False) -> str:
    """Returns the table as LaTeX: a ``tabular`` for the package booktabs, with a comment on each column at its head.

    Shares are in per cent. A mean over training seeds has its standard deviation; a value that is not above chance has
    a dagger, a stale one a double dagger.

    Args:
        bold: the best value of each column in bold.
    """
    comments = ["needs \\usepackage{booktabs}"]
    comments += [
        f"column {number}: {', '.join(column.card)}" for number, column in enumerate(table.columns, start=4)
    ]
    if table.grouped:
        comments.append("mean and standard deviation over training seeds")
    if any(not_above_chance(row) for entry in table.entries for row in entry.values.values()):
        comments.append("dagger: not above chance")
    if any(is_stale(row) for entry in table.entries for row in entry.values.values()):
        comments.append(f"double dagger: {STALE_NOTE}")
    titles = ["run", "method", "checkpoint", *(column.protocol for column in table.columns)]
    units = [
        "",
        "",
        "",
        *(column.threat or (column.quantity if not column.is_accuracy else "") for column in table.columns),
    ]
    lines = [
        [latex_escaped(part) for part in (entry.title, entry.method, entry.checkpoint)]
        + [_latex_cell(table, column, entry, bold) for column in table.columns]
        for entry in table.entries
    ]
    alignment = "lll" + "r" * len(table.columns)
    return "\n".join(
        [
            *(f"% {one_line(comment)}" for comment in comments),
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(map(latex_escaped, titles)) + r" \\",
            *([" & ".join(map(latex_escaped, units)) + r" \\"] if any(units) else []),
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_cell(table: Table, column: Column, entry: Entry, bold: bool) -> str:
    row = entry.values.get(column)
    if row is None:
        return "--"
    number: Callable[[float], str] = (
        (lambda value: f"{100 * value:.1f}") if column.is_share else "{:.4g}".format
    )
    values = [other.values[column]["value"] for other in table.entries if column in other.values]
    best = max(values) if column.better == "higher" else min(values)
    text = number(row["value"])
    # Equal after rounding is equally good on paper.
    if bold and len(values) > 1 and text == number(best):
        text = rf"\textbf{{{text}}}"
    if "std" in row:
        text += rf" $\pm$ {number(row['std'])}"
    text += r"$^\dagger$" if not_above_chance(row) else ""
    return text + (r"$^\ddagger$" if is_stale(row) else "")


def as_tree(table: Table) -> dict[str, Any]:
    """Returns the table for JSON: ``columns``, and ``rows`` whose ``values`` are in the order of the columns."""
    names = ("protocol", "version", "quantity", "better", "threat", "count", "data", "chance")
    return {
        "columns": [
            {"name": short, **{name: getattr(column, name) or None for name in names}}
            for short, column in zip(table.names, table.columns, strict=True)
        ],
        "rows": [
            {
                "run": entry.run,
                "path": entry.path,
                "method": entry.method,
                "checkpoint": entry.checkpoint,
                "minutes": entry.minutes,
                "seeds": list(entry.seeds),
                "values": [_value(entry.values.get(column)) for column in table.columns],
                "not_comparable": list(entry.notes),
            }
            for entry in table.entries
        ],
    }


def _value(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    further = {key: row[key] for key in SPREAD if key in row} | ({"stale": True} if is_stale(row) else {})
    return {key: row.get(key) for key in (*PARTS, "seed", "seconds")} | further
