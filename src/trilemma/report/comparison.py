"""One page about several runs side by side: results, the trade-off, samples and energies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilemma.figures.energy_landscape import TITLES, draw_histograms, energy_range
from trilemma.figures.style import render
from trilemma.figures.trade_off import draw_generation, draw_trade_off
from trilemma.metrics.energy_landscape import read_points
from trilemma.report.html import sample_picture
from trilemma.report.lint import lint_lines
from trilemma.report.page import Picture, picture, read_script, write_page
from trilemma.report.table import (
    DISTANCE,
    Column,
    Entry,
    Table,
    build_table,
    cell,
    distinct_names,
    incomparable,
)
from trilemma.report.words import footer, method_words, shown_path, threat_words
from trilemma.runs.read import Contents, read_contents, start_order


def write_comparison(runs: Sequence[str | Path], path: str | Path, title: str = "Runs compared") -> Path:
    """Writes the page to ``path``.

    Args:
        runs: run folders, in the order to show them.
        path: the HTML file.
        title: its heading.

    Returns:
        The page's path.

    Raises:
        RunError: one of them is not a run folder, or the page cannot be written.
    """
    contents = [read_contents(run) for run in runs]
    names = distinct_names(contents)
    table = build_table(names, contents)
    return write_page(
        "comparison.html.j2",
        Path(path),
        title=title,
        count=len(contents),
        table=table,
        cell=cell,
        incomparable=incomparable(table),
        script=read_script("sort.js"),
        methods=[(name, run.method, method_words(run)) for name, run in zip(names, contents, strict=True)],
        paths=[shown_path(run) for run in contents],
        setting=setting(contents),
        warnings=mismatches(contents),
        lint=lint_lines(names, contents),
        trade_offs=trade_off_pictures(table),
        samples=sample_sets(names, contents),
        energies=energy_pictures(names, contents),
        footer=footer(),
    )


def protocol_names(runs: Sequence[Contents]) -> list[str]:
    """All protocols that some run has a row of, clean first."""
    found = {name for run in runs for name in run.rows}
    return sorted(found, key=lambda name: (name != "clean", name))


def setting(runs: Sequence[Contents]) -> str:
    """The data and threat of the result rows, in words."""
    rows = [row for run in runs for row in run.rows.values()]
    data = sorted({row["data"]["name"] for row in rows})
    threats = sorted({threat_words(row["threat"]) for row in rows if row["threat"]})
    return "; ".join([", ".join(data), *threats]) if rows else "nothing evaluated yet"


def mismatches(runs: Sequence[Contents]) -> list[str]:
    """Where rows of one protocol were not measured in the same way, so that they cannot be compared."""
    found = []
    for name in protocol_names(runs):
        rows = [run.rows[name] for run in runs if name in run.rows]
        for key in ("data", "threat", "version"):
            values = {str(row[key]) for row in rows}
            if len(values) > 1:
                found.append(f"{name}: the rows differ in {key}, so they are not comparable.")
    return found


# Attacks that most runs have a row of: the strongest is the one to show.
STRENGTH = ("autoattack-standard", "autoattack-few-classes", "pgd-50-10", "pgd-20")


def trade_off_pictures(table: Table) -> list[Picture]:
    """Robust against clean accuracy and, where there are samples, against generation; only values that compare."""
    firsts = {entry.place: entry for entry in reversed(table.entries)}
    entries = [firsts[place] for place in sorted(firsts)]
    accuracies = [column for column in table.columns if column.quantity == "accuracy"]
    clean = _shared([column for column in accuracies if column.protocol == "clean"], entries)
    robust = _shared([column for column in accuracies if column.threat], entries)
    shown = [entry for entry in entries if clean in entry.values and robust in entry.values]
    if clean is None or robust is None or not shown:
        return []
    both = [(entry.run, entry.values[clean], entry.values[robust]) for entry in shown]
    places = [entry.place for entry in shown]
    pictures = [
        picture(
            render(lambda theme: draw_trade_off(both, robust.protocol, theme, places)),
            "clean accuracy against robust accuracy",
            "Up and to the right is better; lines are 95 % intervals.",
        )
    ]
    feature = [column for column in table.columns if column.quantity.startswith(("FID", "FD-"))]
    made = _shared([*feature, *(column for column in table.columns if column.quantity == DISTANCE)], shown)
    if made is None or not (sampled := [entry for entry in shown if made in entry.values]):
        return pictures
    points = [(entry.run, entry.values[made], entry.values[robust]) for entry in sampled]
    seats = [entry.place for entry in sampled]
    name = "distance of samples, of real images" if made.quantity == DISTANCE else made.quantity
    images = render(lambda theme: draw_generation(points, name, robust.protocol, theme, seats))
    caption = f"Up and to the right is better. Samples: {made.protocol.removeprefix('samples ').replace(':', ', ')}."
    return [*pictures, picture(images, "figure of generated images against robust accuracy", caption)]


def _shared(columns: Sequence[Column], entries: Sequence[Entry]) -> Column | None:
    """The column that most entries have a value in; of those, the strongest attack, or else the first."""
    rank = {name: place for place, name in enumerate(STRENGTH)}
    keyed = [
        (-sum(column in entry.values for entry in entries), rank.get(column.protocol, len(rank)), place)
        for place, column in enumerate(columns)
    ]
    return columns[min(keyed)[2]] if keyed else None


def sample_names(runs: Sequence[Contents]) -> list[str]:
    """Names of the sample records, those that most runs have first, then by how little the start knows."""
    records = [record for run in runs for record in run.samples]
    counts = Counter(record["name"] for record in records)
    order = {record["name"]: start_order(record) for record in records}
    return sorted(counts, key=lambda name: (-counts[name], order[name], name))


def _record(run: Contents, name: str) -> dict[str, Any] | None:
    return next((record for record in run.samples if record["name"] == name), None)


def sample_sets(names: Sequence[str], runs: Sequence[Contents]) -> list[dict[str, Any]]:
    """Per way of sampling: the grids of the runs, their figures in one table, and those of real images."""
    sets = []
    for kind in sample_names(runs):
        found = [
            (name, place, run, _record(run, kind))
            for place, (name, run) in enumerate(zip(names, runs, strict=True))
        ]
        there = [(name, record) for name, _, _, record in found if record is not None]
        # The one that was named by an independent classifier, if any: a start is the same for every run.
        shown = next((record for _, record in there if record["namer"] is not None), there[0][1])
        figures = [("starts", shown["figures"]["start"])] if _same_starts(there) else []
        for name, record in there:
            if not figures or figures[0][0] != "starts":
                figures.append((f"{name}, starts", record["figures"]["start"]))
            figures.append((f"{name}, samples", record["figures"]["sample"]))
        real = shown["figures"].get("real")
        sets.append(
            {
                "record": shown,
                "grids": [(name, place, _grid(run, record)) for name, place, run, record in found],
                "figures": [*figures, *([("real test images", real)] if real else [])],
                "real": real,
            }
        )
    return sets


def _same_starts(there: Sequence[tuple[str, dict[str, Any]]]) -> bool:
    """Whether every run walked from the same images, as far as their figures tell."""
    keys = {
        (record["seed"], record["per_class"], record["figures"]["start"]["distance"]) for _, record in there
    }
    return len(keys) == 1


def _grid(run: Contents, record: dict[str, Any] | None) -> Picture | None:
    grid = None if record is None else sample_picture(run, record)
    return None if grid is None else replace(grid, caption="")


def energy_pictures(names: Sequence[str], runs: Sequence[Contents]) -> list[tuple[str, Picture | None]]:
    """Energy histograms of each run, on the same axes."""
    sets = [None if (file := run.energies_file) is None else read_points(file) for run in runs]
    drawn = [points for points in sets if points is not None]
    ends = {energy: [energy_range(points, energy) for points in drawn] for energy in TITLES}
    shared = {
        energy: (min(e[0] for e in found), max(e[1] for e in found))
        for energy, found in ends.items()
        if found
    }
    pictures: list[tuple[str, Picture | None]] = []
    for name, points in zip(names, sets, strict=True):
        if points is None:
            pictures.append((name, None))
            continue
        images = render(lambda theme, points=points: draw_histograms(points, theme, shared))  # type: ignore[misc]
        pictures.append((name, picture(images, f"energies of {name}", "")))
    return pictures
