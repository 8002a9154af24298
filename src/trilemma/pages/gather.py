"""Gathers the results of runs into one table; runs that differ by their training seed only share an entry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from trilemma.pages.table import DISTANCE, HELD_OUT, NAMED, STALE_NOTE, Column, Entry, Table
from trilemma.pages.words import DASH, threat_words
from trilemma.runs.read import Contents, Record, read_all
from trilemma.runs.records import (
    STALE,
    checkpoint_name,
    is_stale,
    read_config,
    same_checkpoint,
    stored_threat,
)
from trilemma.runs.run_directory import selected_line

# Runs that differ by their training seed only, or one run; never empty.
Group = tuple[Contents, ...]
# Column fields that rows of one protocol must share to be comparable, and their names in notes.
SETTINGS = {"version": "version", "data": "images", "threat": "threat"}


def group_runs(runs: Sequence[Contents], each: bool = False) -> list[Group]:
    """Returns runs whose configuration differs by ``training.seed`` only as groups, in the order of their first runs.

    Runs that ended differently, such as a finished and an interrupted one, are not in one group, nor are two runs with
    the same seed.

    Args:
        each: every run is a group of its own.
    """
    groups: dict[str, list[Contents]] = {}
    seeds: set[tuple[str, int | None]] = set()
    for index, run in enumerate(runs):
        key, seed = _without_seed(run)
        if each or key is None or (key, seed) in seeds:
            key = f"run {index}"
        seeds.add((key, seed))
        groups.setdefault(key, []).append(run)
    return [tuple(group) for group in groups.values()]


def _without_seed(run: Contents) -> tuple[str | None, int | None]:
    """Returns what runs of one group have in common, and the training seed; ``None`` if the folder is not a run."""
    if not run.is_run:
        return None, None
    config = read_config(run.path)
    seed = config.get("training", {}).pop("seed", 0)
    return json.dumps([config, run.status.get("status")], sort_keys=True, default=str), seed


def group_seeds(group: Group) -> tuple[int, ...]:
    """Returns the training seeds of a group, ascending; empty for result rows without a run."""
    return tuple(sorted(seed for run in group if (seed := _without_seed(run)[1]) is not None))


def group_names(groups: Sequence[Group]) -> list[str]:
    """Returns distinct display names: of runs, the methods if they are distinct, else the folders, else the paths.

    Of several runs, the name is the beginning that their folders share.
    """
    methods = [group[0].method if group[0].is_run else "" for group in groups]
    folders = [_common([run.name for run in group]) for group in groups]
    for names in (methods, folders):
        if "" not in names and len(set(names)) == len(names):
            return names
    return [str(group[0].path) for group in groups]


def _common(names: Sequence[str]) -> str:
    """Returns the common beginning of names, without ``seed`` at its end; the first name if there is none."""
    if len(names) == 1:
        return names[0]
    first, last = min(names), max(names)
    length = next((index for index, letter in enumerate(first) if letter != last[index]), len(first))
    beginning = first[:length].rstrip("0123456789").rstrip("-_.= ")
    return beginning.removesuffix("seed").rstrip("-_. ") or names[0]


def with_held_out(run: Contents) -> Contents:
    """Returns the contents of a run, with two rows for the held-out accuracies by which its checkpoint was selected."""
    # Imported here, because it imports torch, which other tables do not need.
    from trilemma.metrics.accuracy import wilson_interval

    line = selected_line(run.metrics)
    count, data = line.get("held_out_images"), run.about.get("data") or DASH
    # Of another checkpoint than the folder holds, as after its line was lost.
    stale = {STALE: True} if line.get("step") != run.about.get("step", line.get("step")) else {}
    common = {
        "version": 1, "quantity": "accuracy", "better": "higher", "count": count or 0, "seed": None,
        "data": {"name": data, "split": "held-out", "images": "" if count is None else f"first {count}"},
        "checkpoint": {**run.about, **stale}, "facts": {}, "chance": line.get("held_out_chance"),
    }  # fmt: skip
    rows = {}
    for name, key, threat in (("clean", "clean", None), ("pgd-10", "pgd10", stored_threat(run.path))):
        if (value := line.get(f"held_out_{key}")) is not None:
            lower, upper = wilson_interval(value * count, count) if count else (None, None)
            protocol = f"{HELD_OUT} {name}"
            rows[protocol] = {
                **common, "protocol": protocol, "threat": threat, "value": value, "lower": lower, "upper": upper
            }  # fmt: skip
    return replace(run, rows={**run.rows, **rows})


def comparison_table(runs: Sequence[str | Path], each: bool = False, held_out: bool = False) -> Table:
    """Returns the table of several run folders, or folders of result rows.

    Args:
        runs: the folders.
        each: also runs that differ by their training seed only have an entry each.
        held_out: with columns of the held-out accuracies by which each checkpoint was selected.

    Raises:
        RunError: a folder is neither a run nor a folder of result rows.
    """
    contents = read_all(runs)
    groups = group_runs([with_held_out(run) for run in contents] if held_out else contents, each)
    return build_table(group_names(groups), groups)


def build_table(names: Sequence[str], groups: Sequence[Group]) -> Table:
    """Returns the table of the results of several runs.

    It has the headline rows of every run: those on the run's own test images with its own threat. A row of other data
    or another threat is in it if another run has a comparable one, or if its run has no headline for this protocol.

    Args:
        names: display names of the groups.
        groups: runs that differ by their training seed only share an entry; if best and last checkpoints were both
            evaluated, there are two.
    """
    measured = [
        (name, index, group, members)
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
        for members in _members_by_checkpoint(group)
    ]
    available = Counter(
        column
        for *_, members in measured
        for column in {column_of(row) for headlines, others in members for row in (*headlines, *others)}
    )
    chosen = [
        (
            name,
            index,
            group,
            [_worth_comparing(headlines, others, available) for headlines, others in members],
        )
        for name, index, group, members in measured
    ]
    columns_of_entries = [
        list(dict.fromkeys(column_of(row) for rows in members for row in rows)) for *_, members in chosen
    ]
    all_columns = [column for columns in columns_of_entries for column in columns]
    # Columns are equal whether or not their rows record the chance level; one that does is shown.
    known = {column: column for column in sorted(all_columns, key=lambda column: column.chance is not None)}
    entries = [
        Entry(
            run=name, path=str(group[0].path), run_index=index, method=group[0].method or DASH,
            checkpoint=_checkpoint(members, group), minutes=_mean_minutes(group),
            values={column: _value_of(column, members) for column in columns},
            notes=(*_notes(columns, all_columns), *_stale_notes(members)), seeds=group_seeds(group),
        )
        for (name, index, group, members), columns in zip(chosen, columns_of_entries, strict=True)
    ]  # fmt: skip
    return Table(tuple(sorted(known.values(), key=_order)), tuple(entries))


def _members_by_checkpoint(group: Group) -> list[list[tuple[list[Record], list[Record]]]]:
    """Returns headline and other rows of each run: of the best checkpoints and, if evaluated, of the last ones."""
    parts = [_records_by_checkpoint(run) for run in group]
    return [
        [part[position] for part in parts if len(part) > position] for position in range(max(map(len, parts)))
    ]


def _value_of(column: Column, members: Sequence[Sequence[Record]]) -> Record:
    """Returns the row of a column; of several runs a row with their mean, standard deviation and range."""
    rows = [row for rows in members for row in rows if column_of(row) == column]
    of = {"of": len(members)} if len(members) > 1 else {}
    if len(rows) == 1:
        return {**rows[0], **of}
    values = [row["value"] for row in rows]
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    return {
        "value": mean(values), "lower": None, "upper": None,
        "std": stdev(values), "min": min(values), "max": max(values), "runs": len(values), **of,
        "chance": column.chance, "seed": None,
        "seconds": mean(seconds) if len(seconds) == len(rows) else None,
        "checkpoint": next(filter(is_stale, rows), rows[0]).get("checkpoint", {}),
    }  # fmt: skip


def _mean_minutes(group: Group) -> float | None:
    minutes = [run.minutes for run in group if run.minutes is not None]
    return mean(minutes) if minutes else None


def _records_by_checkpoint(run: Contents) -> list[tuple[list[Record], list[Record]]]:
    """Returns the headline rows and the other rows of the best checkpoint and, if it was evaluated, of the last."""
    samples = [row for record in run.samples for row in sample_rows(record)]
    best = [*run.rows.values(), *run.measures.values(), *samples]
    groups = [best, list(run.last.values())] if run.last else [best]
    checkpoints = [(group or run.others or [{}])[0].get("checkpoint") for group in groups]
    return [
        (group, [row for row in run.others if same_checkpoint(row, {"checkpoint": checkpoint})])
        for group, checkpoint in zip(groups, checkpoints, strict=True)
    ]


def _worth_comparing(
    headlines: Sequence[Record], others: Sequence[Record], available: Mapping[Column, int]
) -> list[Record]:
    """Returns the headline rows, and other rows whose column a further entry has or whose protocol has no headline."""
    protocols = {row["protocol"] for row in headlines}
    further = [row for row in others if row["protocol"] not in protocols or available[column_of(row)] > 1]
    return [*headlines, *further]


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
        purified=bool(row.get("purification")),
        chance=row.get("chance"),
    )


def _order(column: Column) -> tuple[Any, ...]:
    kinds = ("accuracy", NAMED, DISTANCE)
    kind = kinds.index(column.quantity) if column.quantity in kinds else len(kinds)
    return kind, column.protocol != "clean", column.protocol, column.version, column.threat, column.data


def _checkpoint(members: Sequence[Sequence[Record]], group: Group) -> str:
    """Returns the checkpoint as text; of several runs that differ in the epoch, ``best, epochs 3 to 9``."""
    about = [
        rows[0].get("checkpoint", {}) if rows else run.about
        for rows, run in zip(members, group, strict=False)
    ]
    names = {checkpoint_name(record) or DASH for record in about}
    if len(names) == 1:
        return names.pop()
    kinds = ", ".join(dict.fromkeys(str(record.get("checkpoint", DASH)) for record in about))
    epochs = [record["epoch"] for record in about if record.get("epoch") is not None]
    return f"{kinds}, epochs {min(epochs):g} to {max(epochs):g}" if epochs else kinds


def _stale_notes(members: Sequence[Sequence[Record]]) -> tuple[str, ...]:
    """Returns a note for the protocols of rows that were measured on another classifier than their run holds."""
    stale = dict.fromkeys(row["protocol"] for rows in members for row in rows if is_stale(row))
    return (f"{', '.join(stale)}: {STALE_NOTE}",) if stale else ()


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
