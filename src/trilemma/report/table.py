"""Several runs in one table; a column is one quantity under one protocol, on the same images and threat."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.report.words import DASH, threat_words
from trilemma.runs.read import Contents, Record, read_contents
from trilemma.runs.records import checkpoint_name

# What two rows of one protocol must share to be comparable, in the words of a reader.
SETTINGS = {"version": "version", "data": "images", "threat": "threat"}
# Figures of generated images as ``trilemma generate`` records them: of the samples, in units of real test images.
NAMED, DISTANCE = "named as their class", "distance, of real"


@dataclass(frozen=True)
class Column:
    """What the values below it have in common; only those can be compared.

    Attributes:
        protocol, version: the protocol card.
        quantity: ``accuracy``, or what else was measured; shares are in [0, 1].
        better: ``higher`` or ``lower``.
        threat: in words, or empty.
        count: number of images.
        data: name, split and which images, in words.
    """

    protocol: str
    version: int
    quantity: str
    better: str
    threat: str
    count: int
    data: str

    @property
    def is_share(self) -> bool:
        """Whether values are shares of images, with Wilson intervals, shown in per cent."""
        return self.quantity in ("accuracy", NAMED)

    @property
    def card(self) -> tuple[str, ...]:
        """The protocol in a few short lines."""
        name = f"{self.protocol} v{self.version}"
        quantity = f"{self.quantity}, {self.better} is better"
        return tuple(text for text in (name, quantity, self.threat, self.data) if text)


@dataclass(frozen=True)
class Entry:
    """One classifier of one run.

    Attributes:
        run: its name; ``path`` its folder.
        place: of the run among those compared.
        checkpoint: which one, ``best`` or ``last``, and its epoch.
        values: column to row (``value``, ``lower``, ``upper``, ``seed`` and the rest).
        notes: protocols in which it was measured in another way than most, and so does not compare, with what differs.
    """

    run: str
    path: str
    place: int
    method: str
    checkpoint: str
    minutes: float | None
    values: Mapping[Column, Record]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Columns, clean accuracy first, and one entry per classifier."""

    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]


def build_table(names: Sequence[str], runs: Sequence[Contents]) -> Table:
    """One table of all that the runs' folders hold.

    Args:
        names: how to call the runs.
        runs: their contents; a run whose last classifier was evaluated beside its best one has two entries.
    """
    measured = [
        (name, place, run, records)
        for place, (name, run) in enumerate(zip(names, runs, strict=True))
        for records in _of_each_checkpoint(run)
    ]
    everything = [column_of(record) for *_, records in measured for record in records]
    columns = sorted(set(everything), key=_order)
    entries = [
        Entry(
            run=name, path=str(run.path), place=place, method=run.method,
            checkpoint=_checkpoint(records, run), minutes=run.minutes,
            values={column_of(record): record for record in records},
            notes=_notes([column_of(record) for record in records], everything),
        )
        for name, place, run, records in measured
    ]  # fmt: skip
    return Table(tuple(columns), tuple(entries))


def _of_each_checkpoint(run: Contents) -> list[list[Record]]:
    """Rows of the best classifier with the figures of its samples, and, where there are any, rows of the last."""
    samples = [row for record in run.samples for row in sample_rows(record)]
    first = [*run.rows.values(), *run.measures.values(), *samples]
    return [first, list(run.last.values())] if run.last else [first]


def sample_rows(record: Record) -> list[Record]:
    """The figures of a record of ``trilemma generate`` as rows: samples only, never without those of real images."""
    figures, real = record["figures"]["sample"], record["figures"].get("real")
    made = record.get("checkpoint", {})
    start = {"protocol": f"samples {record['name']}", "version": 1, "threat": None, "count": figures["count"]}
    about = {**start, "seed": record["seed"], "checkpoint": made}
    rows: list[Record] = []
    if figures["named"] is not None and record["namer"]:
        judge = record["namer"].get("recipe") or record["namer"].get("method") or "another classifier"
        rows.append(
            {
                **about, "quantity": NAMED, "better": "higher", "value": figures["named"],
                "lower": figures["named_lower"], "upper": figures["named_upper"],
                "data": {"name": f"by {judge}", "split": "", "images": ""},
            }
        )  # fmt: skip
    reference = record["reference"]
    if reference and real and real["distance"] and figures["distance"] is not None:
        rows.append(
            {
                **about, "quantity": DISTANCE, "better": "lower", "lower": None, "upper": None,
                "value": figures["distance"] / real["distance"],
                "data": {"name": reference["name"], "split": "train", "images": f"all {reference['images']}"},
            }
        )  # fmt: skip
    return rows


def column_of(row: Record) -> Column:
    """The column that a row belongs to; rows from before there were quantities are accuracies."""
    data = row["data"]
    words = ", ".join(text for text in (f"{data['name']} {data['split']}".strip(), data["images"]) if text)
    extractor = f", in {data['extractor']}" if data.get("extractor") else ""
    return Column(
        protocol=row["protocol"],
        version=row["version"],
        quantity=row.get("quantity", "accuracy"),
        better=row.get("better", "higher"),
        threat=threat_words(row["threat"]),
        count=row["count"],
        data=words + extractor,
    )


def _order(column: Column) -> tuple[Any, ...]:
    kinds = ("accuracy", NAMED, DISTANCE)
    kind = kinds.index(column.quantity) if column.quantity in kinds else len(kinds)
    return kind, column.protocol != "clean", column.protocol, column.version, column.threat, column.data


def _checkpoint(records: Sequence[Record], run: Contents) -> str:
    return checkpoint_name(records[0]["checkpoint"] if records else run.about) or "-"


def _notes(own: Iterable[Column], all_columns: Sequence[Column]) -> tuple[str, ...]:
    """``clean: other images``, where most rows of a protocol, or as many, stand in another column.

    Args:
        own: the columns of one entry.
        all_columns: those of every entry, so that each is there as often as it has values.
    """
    counts = Counter(all_columns)
    notes = []
    for column in own:
        rivals = [
            other for other in counts
            if (other.protocol, other.quantity) == (column.protocol, column.quantity) and other != column
            and counts[other] >= counts[column]
        ]  # fmt: skip
        differing = [
            words
            for key, words in SETTINGS.items()
            if any(getattr(other, key) != getattr(column, key) for other in rivals)
        ]
        if rivals:
            notes.append(f"{column.protocol}: other {' and '.join(differing)}")
    return tuple(notes)


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


def comparison_table(runs: Sequence[str | Path]) -> Table:
    """The table of several run folders.

    Raises:
        RunError: one of them is not a run folder.
    """
    contents = [read_contents(run) for run in runs]
    return build_table(distinct_names(contents), contents)


def distinct_names(runs: Sequence[Contents]) -> list[str]:
    """Method names where they tell the runs apart, else folder names."""
    for names in ([run.method for run in runs], [run.name for run in runs]):
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]
