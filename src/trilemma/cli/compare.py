"""``trilemma compare``: several runs in one table and on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from trilemma.cli.common import Json, argument, option, print_json, print_table, run_results, writable_folder
from trilemma.errors import ConfigError, RunError
from trilemma.files import write_text
from trilemma.pages.table import Table, as_csv, as_markdown, as_tree, cell, comparison_table
from trilemma.pages.words import DASH
from trilemma.runs.read import check_results

Format = Literal["html", "markdown", "csv", "json"]
FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown", ".csv": "csv", ".json": "json",
}  # fmt: skip
DEFAULT_PAGE = Path("compare.html")

Runs = Annotated[list[Path], argument("RUN...", "run folders, or folders of result rows")]
OutFile = Annotated[
    Path | None, option("--out FILE", "output file; its suffix sets the format  [default: compare.html]")
]
OutFormat = Annotated[
    Format | None, option("--format", "format of the file, or of standard output without --out")
]


def compare(runs: Runs, out: OutFile = None, form: OutFormat = None, as_json: Json = False) -> None:
    """Compares runs: a table, and an HTML page with plots.

    A column holds values of one protocol, measured on the same images with the same threat model; rows that differ in
    one of these carry a note. The page is self-contained, and its table can be sorted. Evaluate each run first. A
    folder of result rows, which `trilemma evaluate FILE --out DIR` writes, is compared like a run.

    \b
    Examples:
      trilemma compare runs/digits-standard runs/digits-pgd-at runs/digits-eb-jdat --out compare.html
      trilemma compare runs/digits-standard runs/digits-pgd-at --format markdown
      trilemma compare runs/digits-standard runs/digits-pgd-at --out table.csv
    """
    for path in runs:
        check_results(path)
    chosen = form or _format_from_suffix(out)
    if chosen == "html":
        out = out or DEFAULT_PAGE
    if out is not None:
        if out.is_dir():
            raise RunError(f"{out}: is a folder; --out expects a file, such as {out / DEFAULT_PAGE}")
        writable_folder(out.parent)
    table = comparison_table(runs)
    if chosen == "html" and out is not None:
        from trilemma.pages.comparison import write_comparison

        write_comparison(runs, out)
    else:
        text = _text(table, chosen)
        if out is None and not as_json:
            print(text, end="")
            return
        if out is not None:
            write_text(out, text)
    if as_json:
        print_json(
            {"runs": run_results(runs), "table": as_tree(table), "page": None if out is None else str(out)}
        )
    else:
        print_table(table_by_value(table))
        for entry in table.entries:
            for note in entry.notes:
                print(f"not comparable: {entry.path}, {entry.checkpoint}: {note}")
        print(out)


def _format_from_suffix(out: Path | None) -> Format:
    """Returns the format that the suffix of ``--out`` stands for; HTML without ``--out`` or for a folder."""
    if out is None or out.is_dir():
        return "html"
    if out.suffix.lower() not in FORMAT_OF_SUFFIX:
        raise ConfigError(f"--out {out}: unknown suffix; use {', '.join(FORMAT_OF_SUFFIX)}, or add --format")
    return FORMAT_OF_SUFFIX[out.suffix.lower()]


def _text(table: Table, form: Format) -> str:
    if form == "json":
        return json.dumps(as_tree(table), indent=2) + "\n"
    return as_csv(table) if form == "csv" else as_markdown(table)


def table_by_value(table: Table) -> list[dict[str, str]]:
    """Returns the table with one row per value, because one column per protocol would not fit a terminal."""
    rows = []
    for column in table.columns:
        measured = [entry for entry in table.entries if entry.values.get(column) is not None]
        for number, entry in enumerate(measured):
            first = number == 0
            rows.append(
                {
                    "protocol": f"{column.protocol} v{column.version}" if first else "",
                    "value": f"{column.quantity}, {column.better} is better" if first else "",
                    "threat": (column.threat or DASH) if first else "",
                    "run": entry.path,
                    "checkpoint": entry.checkpoint,
                    "": cell(column, entry.values[column]),
                }
            )
    return rows
