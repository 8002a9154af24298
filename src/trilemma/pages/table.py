"""Table of several runs; a column is one quantity under one protocol, on the same images with the same threat model."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilemma.figures.labels import one_line
from trilemma.pages.words import DASH, NOT_ABOVE, not_above_chance, percent, threat_words
from trilemma.runs.read import Contents, Record, read_contents
from trilemma.runs.records import checkpoint_name
from trilemma.tables import Records, data_frame

# Column fields that rows of one protocol must share to be comparable, and their names in notes.
SETTINGS = {"version": "version", "data": "images", "threat": "threat"}
# Quantities of generated images from ``trilemma generate``; the distance is divided by that of real test images.
NAMED, DISTANCE = "named as their class", "distance, of real"


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
        chance: the accuracy of one answer for every one of these images; ``None`` if no row of the column records it.
    """

    protocol: str
    version: int
    quantity: str
    better: str
    threat: str
    count: int
    data: str
    chance: float | None = field(default=None, compare=False)

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
    """One classifier of one run.

    Attributes:
        run: name of the run.
        path: folder of the run.
        run_index: index of the run among the compared runs.
        checkpoint: ``best`` or ``last``, and its epoch.
        minutes: training time, or ``None`` if unknown.
        values: column to result row (``value``, ``lower``, ``upper``, ``seed`` and others).
        notes: protocols in which it is not comparable with most other entries, and the settings that differ.
    """

    run: str
    path: str
    run_index: int
    method: str
    checkpoint: str
    minutes: float | None
    values: Mapping[Column, Record]
    notes: tuple[str, ...]


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
                "value": f"{column.quantity}, {column.better} is better" if number == 0 else "",
                "threat": (column.threat or DASH) if number == 0 else "",
                "run": entry.path,
                "checkpoint": entry.checkpoint,
                "": cell(column, entry.values[column]),
            }
            for column in self.columns
            for number, entry in enumerate(entry for entry in self.entries if column in entry.values)
        )

    def to_markdown(self) -> str:
        """The table as Markdown, with a column per protocol."""
        return as_markdown(self)

    def to_csv(self) -> str:
        """The table as CSV, with the value and the 95 % interval of each protocol."""
        return as_csv(self)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row per value: run, checkpoint, protocol, quantity, value and interval.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame(
            {
                "run": entry.path, "method": entry.method, "checkpoint": entry.checkpoint,
                "protocol": column.protocol, "quantity": column.quantity, "threat": column.threat,
                "data": column.data, **{part: entry.values[column][part] for part in PARTS},
            }
            for column in self.columns
            for entry in self.entries
            if column in entry.values
        )  # fmt: skip

    def __repr__(self) -> str:
        return repr(self.by_value())

    def _repr_html_(self) -> str:
        return self.by_value()._repr_html_()


def build_table(names: Sequence[str], runs: Sequence[Contents]) -> Table:
    """Returns the table of the results of several runs.

    It has the headline rows of every run: those on the run's own test images with its own threat. A row of other data
    or another threat is in it if another run has a comparable one, or if its run has no headline for this protocol.

    Args:
        names: display names of the runs.
        runs: their contents; a run whose best and last checkpoints were both evaluated has two entries.
    """
    measured = [
        (name, index, run, *records)
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
        for records in _records_by_checkpoint(run)
    ]
    available = Counter(
        column
        for *_, headlines, others in measured
        for column in {column_of(row) for row in (*headlines, *others)}
    )
    chosen = [
        (name, index, run, [*headlines, *_worth_comparing(headlines, others, available)])
        for name, index, run, headlines, others in measured
    ]
    all_columns = [column_of(record) for *_, records in chosen for record in records]
    # Columns are equal whether or not their rows record the chance level; one that does is shown.
    known = {column: column for column in sorted(all_columns, key=lambda column: column.chance is not None)}
    columns = sorted(known.values(), key=_order)
    entries = [
        Entry(
            run=name, path=str(run.path), run_index=index, method=run.method or DASH,
            checkpoint=_checkpoint(records, run), minutes=run.minutes,
            values={column_of(record): record for record in records},
            notes=_notes([column_of(record) for record in records], all_columns),
        )
        for name, index, run, records in chosen
    ]  # fmt: skip
    return Table(tuple(columns), tuple(entries))


def _records_by_checkpoint(run: Contents) -> list[tuple[list[Record], list[Record]]]:
    """Returns the headline rows and the other rows of the best checkpoint and, if it was evaluated, of the last."""
    samples = [row for record in run.samples for row in sample_rows(record)]
    best = [*run.rows.values(), *run.measures.values(), *samples]
    groups = [best, list(run.last.values())] if run.last else [best]
    checkpoints = [(group or run.others or [{}])[0].get("checkpoint") for group in groups]
    return [
        (group, [row for row in run.others if row.get("checkpoint") == checkpoint])
        for group, checkpoint in zip(groups, checkpoints, strict=True)
    ]


def _worth_comparing(
    headlines: Sequence[Record], others: Sequence[Record], available: Mapping[Column, int]
) -> list[Record]:
    """Returns the other rows whose column a further classifier has, or whose protocol has no headline row."""
    protocols = {row["protocol"] for row in headlines}
    return [row for row in others if row["protocol"] not in protocols or available[column_of(row)] > 1]


def sample_rows(record: Record) -> list[Record]:
    """Returns the metrics of the samples of ``trilemma generate`` as result rows.

    The distance is only returned together with that of real images, by which it is divided.
    """
    metrics, real = record["figures"]["sample"], record["figures"].get("real")
    common = {
        "protocol": f"samples {record['name']}", "version": 1, "threat": None, "count": metrics["count"],
        "seed": record["seed"], "checkpoint": record.get("checkpoint", {}),
    }  # fmt: skip
    rows: list[Record] = []
    if metrics["named"] is not None and record["namer"]:
        namer = record["namer"].get("recipe") or record["namer"].get("method") or "another classifier"
        rows.append(
            {
                **common, "quantity": NAMED, "better": "higher", "value": metrics["named"],
                "lower": metrics["named_lower"], "upper": metrics["named_upper"],
                "data": {"name": f"by {namer}", "split": "", "images": ""},
            }
        )  # fmt: skip
    reference = record["reference"]
    if reference and real and real["distance"] and metrics["distance"] is not None:
        rows.append(
            {
                **common, "quantity": DISTANCE, "better": "lower", "lower": None, "upper": None,
                "value": metrics["distance"] / real["distance"],
                "data": {"name": reference["name"], "split": "train", "images": f"all {reference['images']}"},
            }
        )  # fmt: skip
    return rows


def column_of(row: Record) -> Column:
    """Returns the column of a result row; rows of old versions have no ``quantity`` and are accuracies."""
    data = row["data"]
    data_text = ", ".join(
        text for text in (f"{data['name']} {data['split']}".strip(), data["images"]) if text
    )
    extractor = f", in {data['extractor']}" if data.get("extractor") else ""
    return Column(
        protocol=row["protocol"],
        version=row["version"],
        quantity=row.get("quantity", "accuracy"),
        better=row.get("better", "higher"),
        threat=threat_words(row["threat"]),
        count=row["count"],
        data=data_text + extractor,
        chance=row.get("chance"),
    )


def _order(column: Column) -> tuple[Any, ...]:
    kinds = ("accuracy", NAMED, DISTANCE)
    kind = kinds.index(column.quantity) if column.quantity in kinds else len(kinds)
    return kind, column.protocol != "clean", column.protocol, column.version, column.threat, column.data


def _checkpoint(records: Sequence[Record], run: Contents) -> str:
    return checkpoint_name(records[0]["checkpoint"] if records else run.about) or "-"


def _notes(entry_columns: Iterable[Column], all_columns: Sequence[Column]) -> tuple[str, ...]:
    """Returns notes such as ``clean: other images``, for values whose protocol has another column with as many values.

    Args:
        entry_columns: the columns of one entry; a protocol for which it has several is compared in each of them.
        all_columns: the columns of all entries; a column occurs once per value.
    """
    counts, own = Counter(all_columns), list(dict.fromkeys(entry_columns))
    notes = []
    for column in own:
        rivals = [
            other for other in counts
            if (other.protocol, other.quantity) == (column.protocol, column.quantity) and other not in own
            and counts[other] >= counts[column]
        ]  # fmt: skip
        differing = [
            name
            for key, name in SETTINGS.items()
            if any(getattr(other, key) != getattr(column, key) for other in rivals)
        ]
        if rivals:
            notes.append(f"{column.protocol}: other {' and '.join(differing)}")
    return tuple(notes)


HEAD = ("run", "method", "checkpoint", "minutes")
# Fields of a result row in CSV and JSON output, besides the properties of its column.
PARTS = ("value", "lower", "upper")
INCOMPARABLE = "not comparable"


def cell(column: Column, row: Mapping[str, Any] | None) -> str:
    """Returns the text of a table cell: ``63.5 % (58.6 to 68.1)``, ``2.263``, or a dash; a mark if not above chance."""
    if row is None:
        return DASH
    value, lower, upper = (row[part] for part in PARTS)
    if column.is_share:
        text = f"{100 * value:.1f} %" + (
            f" ({100 * lower:.1f} to {100 * upper:.1f})" if lower is not None else ""
        )
        return f"{text}, {NOT_ABOVE}" if not_above_chance(row) else text
    return f"{value:.4g}" + (f" ({lower:.4g} to {upper:.4g})" if lower is not None else "")


def head(entry: Entry) -> tuple[str, ...]:
    """Returns the cells that identify the classifier of an entry."""
    minutes = DASH if entry.minutes is None else f"{entry.minutes:.3g}"
    return entry.run, entry.method, entry.checkpoint, minutes


def as_markdown(table: Table) -> str:
    """Returns the table as Markdown, with a last column for notes on comparability if there are any."""
    titles = [*HEAD, *("<br>".join(map(_escaped, column.card)) for column in table.columns)]
    lines = [titles, ["---"] * len(HEAD) + ["---:"] * len(table.columns)]
    lines += [
        [*map(_escaped, head(entry)), *(cell(column, entry.values.get(column)) for column in table.columns)]
        for entry in table.entries
    ]
    if incomparable(table):
        notes = [INCOMPARABLE, "---", *(_escaped("; ".join(entry.notes)) for entry in table.entries)]
        lines = [[*line, note] for line, note in zip(lines, notes, strict=True)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def incomparable(table: Table) -> bool:
    """Returns whether an entry has a note on comparability."""
    return any(entry.notes for entry in table.entries)


def _escaped(text: str) -> str:
    """Returns the text in one line, with backslashes before characters that Markdown would read as markup."""
    line = re.sub(r"[\\`*|<>\[\]$]", r"\\\g<0>", one_line(text))
    # Inside a word an underscore is no markup.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", line)


def as_csv(table: Table) -> str:
    """Returns the table as CSV: a line per classifier, with the value and 95 % interval of each column."""
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
    """Returns the table for JSON: ``columns``, and ``rows`` whose ``values`` are in the order of the columns."""
    names = ("protocol", "version", "quantity", "better", "threat", "count", "data", "chance")
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


def comparison_table(runs: Sequence[str | Path]) -> Table:
    """Returns the table of several run folders, or folders of result rows.

    Raises:
        RunError: a folder is neither a run nor a folder of result rows.
    """
    contents = [read_contents(run) for run in runs]
    return build_table(distinct_names(contents), contents)


def distinct_names(runs: Sequence[Contents]) -> list[str]:
    """Returns display names: of runs, the method names if they are distinct, else the folder names, else the paths."""
    for names in ([run.method if run.is_run else "" for run in runs], [run.name for run in runs]):
        if "" not in names and len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]
