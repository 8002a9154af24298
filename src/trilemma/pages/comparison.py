"""HTML page that compares several runs: results, trade-offs, samples and energies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilemma.errors import DataError
from trilemma.figures.energy_landscape import TITLES, draw_histograms, energy_range
from trilemma.figures.style import render
from trilemma.figures.trade_off import draw_generation, draw_trade_off
from trilemma.metrics.energy_landscape import EnergyPoints, read_points
from trilemma.pages.gather import build_table, group_names, group_runs, group_seeds, with_held_out
from trilemma.pages.html import sample_picture
from trilemma.pages.lint import lint_lines
from trilemma.pages.page import Picture, picture, read_script, write_page
from trilemma.pages.table import (
    DISTANCE,
    HELD_OUT,
    SEEDS_NOTE,
    Column,
    Entry,
    Table,
    cell_parts,
    incomparable,
    with_range,
)
from trilemma.pages.words import footer, method_words, shown_path, stale_words, threat_words
from trilemma.printing import print_message
from trilemma.runs.read import Contents, read_all, start_order


def write_comparison(
    runs: Sequence[str | Path],
    path: str | Path,
    title: str = "Runs compared",
    each: bool = False,
    note: str = "",
    held_out: bool = False,
) -> Path:
    """Writes the page and returns its path.

    Runs that differ by their training seed only share a line of the table; of their samples and energies, the page
    shows those of the first one.

    Args:
        runs: run folders, or folders of result rows, in the order in which the page shows them.
        path: output HTML file.
        title: heading of the page.
        each: every run has a line of its own.
        note: a sentence below the heading.
        held_out: with columns of the held-out accuracies by which each checkpoint was selected.

    Raises:
        RunError: a folder is neither a run nor a folder of result rows, or the page cannot be written.
    """
    evaluated = read_all(runs)
    contents = [with_held_out(run) for run in evaluated] if held_out else evaluated
    groups = group_runs(contents, each)
    names, firsts = group_names(groups), [group[0] for group in groups]
    table = build_table(names, groups)
    return write_page(
        "comparison.html.j2",
        Path(path),
        title=title,
        note=note,
        count=len(contents),
        table=table,
        cell_parts=cell_parts,
        incomparable=incomparable(table),
        script=read_script("sort.js"),
        methods=[
            (
                name,
                group[0].method or name,
                method_words(group[0]),
                group_seeds(group) if len(group) > 1 else (),
            )
            for name, group in zip(names, groups, strict=True)
        ],
        seeds_note=SEEDS_NOTE if table.grouped else "",
        paths=[shown_path(run) if run.is_run else None for run in firsts],
        setting=setting(contents),
        warnings=[*mismatches(contents), *stale_warnings(names, firsts)],
        lint=lint_lines(group_names([(run,) for run in evaluated]), evaluated),
        trade_offs=trade_off_pictures(table),
        samples=sample_sets(names, firsts),
        energies=energy_pictures(names, firsts),
        footer=footer(),
    )


def protocol_names(runs: Sequence[Contents]) -> list[str]:
    """Returns the protocols of all accuracy rows, clean first."""
    names = {name for run in runs for name in run.rows}
    return sorted(names, key=lambda name: (name != "clean", name))


def setting(runs: Sequence[Contents]) -> str:
    """Returns the data sets and threat models of the accuracy rows, as text."""
    rows = [row for run in runs for row in run.rows.values()]
    data = sorted({row["data"]["name"] for row in rows})
    threats = sorted({threat_words(row["threat"]) for row in rows if row["threat"]})
    return "; ".join([", ".join(data), *threats]) if rows else "nothing evaluated yet"


def mismatches(runs: Sequence[Contents]) -> list[str]:
    """Returns a warning for each protocol whose rows differ in data, threat or version and so cannot be compared."""
    warnings = []
    for name in protocol_names(runs):
        rows = [run.rows[name] for run in runs if name in run.rows]
        for key in ("data", "threat", "version"):
            values = {str(row[key]) for row in rows}
            if len(values) > 1:
                warnings.append(f"{name}: the rows differ in {key}, so they are not comparable.")
    return warnings


def stale_warnings(names: Sequence[str], runs: Sequence[Contents]) -> list[str]:
    """Returns a warning for each run with results of another classifier, of which the page shows pictures too."""
    return [f"{name}: {words}" for name, run in zip(names, runs, strict=True) if (words := stale_words(run))]


# Attacks from strongest to weakest: of those that equally many runs have, the trade-off shows the strongest.
# Where random networks have a row of autoattack-rand, their other rows are too high.
STRENGTH = ("autoattack-rand", "autoattack-standard", "autoattack-few-classes", "pgd-50-10", "pgd-20")


def trade_off_pictures(table: Table) -> list[Picture]:
    """Returns plots of robust accuracy against clean accuracy and, with samples, against a metric of the samples.

    Values of purified images are of another defence, and not in the plots.
    Each run is shown by its first entry. All values of a plot come from one column each, so they are comparable; those
    on held-out images are shown if there are no others.
    """
    first_entries = {entry.run_index: entry for entry in reversed(table.entries)}
    entries = [first_entries[index] for index in sorted(first_entries)]
    accuracies = [column for column in table.columns if column.quantity == "accuracy" and not column.purified]
    if any(column.protocol == "clean" for column in accuracies):
        accuracies = [column for column in accuracies if not column.protocol.startswith(HELD_OUT)]
    clean = _best_covered([c for c in accuracies if c.protocol in ("clean", f"{HELD_OUT} clean")], entries)
    robust = _best_covered([column for column in accuracies if column.threat], entries)
    shown = [entry for entry in entries if clean in entry.values and robust in entry.values]
    if clean is None or robust is None or not shown:
        return []
    accuracy_points = [
        (entry.run, with_range(entry.values[clean]), with_range(entry.values[robust])) for entry in shown
    ]
    accuracy_indices = [entry.run_index for entry in shown]
    pictures = [
        picture(
            render(lambda theme: draw_trade_off(accuracy_points, robust.protocol, theme, accuracy_indices)),
            "clean accuracy against robust accuracy",
            "Up and to the right is better; lines are 95 % intervals"
            + (", of several training seeds the range." if table.grouped else "."),
            names=[entry.run for entry in shown],
        )
    ]
    feature_distances = [column for column in table.columns if column.quantity.startswith(("FID", "FD-"))]
    generation = _best_covered(
        [*feature_distances, *(column for column in table.columns if column.quantity == DISTANCE)], shown
    )
    if generation is None or not (sampled := [entry for entry in shown if generation in entry.values]):
        return pictures
    points = [
        (entry.run, with_range(entry.values[generation]), with_range(entry.values[robust]))
        for entry in sampled
    ]
    indices = [entry.run_index for entry in sampled]
    name = "distance of samples / of real images" if generation.quantity == DISTANCE else generation.quantity
    images = render(lambda theme: draw_generation(points, name, robust.protocol, theme, indices))
    sampling = generation.protocol.removeprefix("samples ").replace(":", ", ")
    caption = f"Up and to the right is better. Samples: {sampling}."
    names = [entry.run for entry in sampled]
    alt = "metric of generated images against robust accuracy"
    return [*pictures, picture(images, alt, caption, names=names)]


def _best_covered(columns: Sequence[Column], entries: Sequence[Entry]) -> Column | None:
    """Returns the column in which most entries have a value; of several, the strongest attack, else the first."""
    rank = {name: index for index, name in enumerate(STRENGTH)}
    keys = [
        (-sum(column in entry.values for entry in entries), rank.get(column.protocol, len(rank)), index)
        for index, column in enumerate(columns)
    ]
    return columns[min(keys)[2]] if keys else None


def sample_names(runs: Sequence[Contents]) -> list[str]:
    """Returns the names of the sample records: most common first, then by increasing class information of the start."""
    records = [record for run in runs for record in run.samples]
    counts = Counter(record["name"] for record in records)
    order = {record["name"]: start_order(record) for record in records}
    return sorted(counts, key=lambda name: (-counts[name], order[name], name))


def _record(run: Contents, name: str) -> dict[str, Any] | None:
    return next((record for record in run.samples if record["name"] == name), None)


def sample_sets(names: Sequence[str], runs: Sequence[Contents]) -> list[dict[str, Any]]:
    """Returns, per sampler setting, what the page shows: sample grids, and metrics of starts, samples and real images.

    Each dictionary has ``record`` (whose settings the page states), ``grids`` (run name, run index, picture or
    ``None``), ``metrics`` (label and metrics) and ``real`` (metrics of real images, or ``None``).
    """
    sets = []
    for kind in sample_names(runs):
        run_records = [
            (name, index, run, _record(run, kind))
            for index, (name, run) in enumerate(zip(names, runs, strict=True))
        ]
        records = [(name, record) for name, _, _, record in run_records if record is not None]
        # Preferably a record whose images were classified by an independent classifier.
        shown = next((record for _, record in records if record["namer"] is not None), records[0][1])
        same_starts = _same_starts(records)
        metrics = [("starts", shown["figures"]["start"])] if same_starts else []
        for name, record in records:
            if not same_starts:
                metrics.append((f"{name}, starts", record["figures"]["start"]))
            metrics.append((f"{name}, samples", record["figures"]["sample"]))
        real = shown["figures"].get("real")
        sets.append(
            {
                "record": shown,
                "grids": [(name, index, _grid(run, record)) for name, index, run, record in run_records],
                "metrics": [*metrics, *([("real test images", real)] if real else [])],
                "real": real,
            }
        )
    return sets


def _same_starts(records: Sequence[tuple[str, dict[str, Any]]]) -> bool:
    """Returns whether all runs used the same start images, judging by seed, count and distance."""
    keys = {
        (record["seed"], record["per_class"], record["figures"]["start"]["distance"]) for _, record in records
    }
    return len(keys) == 1


def _grid(run: Contents, record: dict[str, Any] | None) -> Picture | None:
    grid = None if record is None else sample_picture(run, record)
    return None if grid is None else replace(grid, caption="")


def _points(run: Contents) -> dict[str, EnergyPoints] | None:
    """Returns the energies of a run; ``None`` without a diagnosis, or for a damaged one, which is named."""
    try:
        return None if run.energies_file is None else read_points(run.energies_file)
    except DataError as error:
        print_message(f"warning: left out: {error}")
        return None


def energy_pictures(names: Sequence[str], runs: Sequence[Contents]) -> list[tuple[str, Picture | None]]:
    """Returns the energy histograms of each run on shared axes, ``None`` for runs without a diagnosis."""
    points_by_run = [_points(run) for run in runs]
    diagnosed = [points for points in points_by_run if points is not None]
    ranges = {energy: [energy_range(points, energy) for points in diagnosed] for energy in TITLES}
    shared_ranges = {
        energy: (min(low for low, _ in limits), max(high for _, high in limits))
        for energy, limits in ranges.items()
        if limits
    }
    pictures: list[tuple[str, Picture | None]] = []
    for name, points in zip(names, points_by_run, strict=True):
        if points is None:
            pictures.append((name, None))
            continue
        images = render(lambda theme, points=points: draw_histograms(points, theme, shared_ranges))  # type: ignore[misc]
        pictures.append((name, picture(images, f"energies of {name}", "")))
    return pictures
