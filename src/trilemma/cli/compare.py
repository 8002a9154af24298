"""``trilemma compare``: several runs in one table and on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from trilemma.cli.common import Json, print_json, print_table, results, writable_folder
from trilemma.errors import ConfigError, RunError
from trilemma.files import write_text
from trilemma.report.table import Table, as_csv, as_markdown, as_tree, cell, comparison_table
from trilemma.report.words import DASH
from trilemma.runs.run_directory import RunDirectory

Format = Literal["html", "markdown", "csv", "json"]
ENDINGS: dict[str, Format] = {
    ".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown", ".csv": "csv", ".json": "json",
}  # fmt: skip
PAGE = Path("compare.html")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="what to write; its ending says how  [default: compare.html]",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="of the file; without --out, of standard output", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Puts runs side by side: a table, and a page with plots.

    A column holds what was measured under one protocol, on the same images, against the same threat; rows that
    differ in one of these say so. The page needs no network, and sorts its table. Evaluate each run first.

    \b
    Examples:
      trilemma compare runs/digits-standard runs/digits-pgd-at runs/digits-eb-jdat --out compare.html
      trilemma compare runs/digits-standard runs/digits-pgd-at --format markdown
      trilemma compare runs/digits-standard runs/digits-pgd-at --out table.csv
    """
    for path in runs:
        RunDirectory.open(path)
    chosen = form or _form(out)
    if chosen == "html":
        out = out or PAGE
    if out is not None:
        if out.is_dir():
            raise RunError(f"{out}: is a folder; --out names the page, such as {out / PAGE}")
        writable_folder(out.parent)
    table = comparison_table(runs)
    if chosen == "html" and out is not None:
        from trilemma.report.comparison import write_comparison

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
            {"runs": results(runs), "table": as_tree(table), "page": None if out is None else str(out)}
        )
    else:
        print_table(cells(table))
        for entry in table.entries:
            for note in entry.notes:
                print(f"not comparable: {entry.path}, {entry.checkpoint}: {note}")
        print(out)


def _form(out: Path | None) -> Format:
    """The format that the ending of ``--out`` names."""
    if out is None or out.is_dir():
        return "html"
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"--out {out}: the ending names no format; use {', '.join(ENDINGS)}, or add --format"
        )
    return ENDINGS[out.suffix.lower()]


def _text(table: Table, form: Format) -> str:
    if form == "json":
        return json.dumps(as_tree(table), indent=2) + "\n"
    return as_csv(table) if form == "csv" else as_markdown(table)


def cells(table: Table) -> list[dict[str, str]]:
    """The table for a terminal, a line per value: its columns would soon be wider than any terminal."""
    lines = []
    for column in table.columns:
        measured = [entry for entry in table.entries if entry.values.get(column) is not None]
        for number, entry in enumerate(measured):
            first = number == 0
            lines.append(
                {
                    "protocol": f"{column.protocol} v{column.version}" if first else "",
                    "value": f"{column.quantity}, {column.better} is better" if first else "",
                    "threat": (column.threat or DASH) if first else "",
                    "run": entry.path,
                    "checkpoint": entry.checkpoint,
                    "": cell(column, entry.values[column]),
                }
            )
    return lines
