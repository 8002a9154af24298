"""``trilemma compare``: several runs in one table and on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trilemma.cli.common import (
    Json,
    argument,
    option,
    print_json,
    print_table,
    print_text,
    run_results,
)
from trilemma.errors import NotStoredError
from trilemma.pages.compare import Format, as_text
from trilemma.pages.compare import compare as compare_runs
from trilemma.pages.table import SEEDS_NOTE, Table, as_tree
from trilemma.printing import print_block, print_lines
from trilemma.runs.read import check_results
from trilemma.storing import go_on_without, writable_file

DEFAULT_PAGE = Path("compare.html")

Runs = Annotated[list[Path], argument("RUN...", "run folders, or folders of result rows")]
OutFile = Annotated[
    Path | None, option("--out FILE", "output file; its suffix sets the format  [default: compare.html]")
]
OutFormat = Annotated[
    Format | None, option("--format", "format of the file, or of standard output without --out")
]
Each = Annotated[
    bool, option("--each", "a line per run, also for runs that differ by their training seed only")
]
Bold = Annotated[bool, option("--bold", "LaTeX: the best value of each column in bold")]


def compare(
    runs: Runs,
    out: OutFile = None,
    form: OutFormat = None,
    each: Each = False,
    bold: Bold = False,
    as_json: Json = False,
) -> None:
    """Compares runs: a table, and an HTML page with plots.

    A column holds values of one protocol, measured on the same images with the same threat model; rows that differ in
    one of these carry a note. The page is self-contained, and its table can be sorted. Evaluate each run first. A
    folder of result rows, which `trilemma evaluate FILE --out DIR` writes, is compared like a run.
    Runs that differ by their training seed only share a line: mean, standard deviation and range.

    \b
    Examples:
      trilemma compare runs/digits-standard runs/digits-pgd-at runs/digits-eb-jdat --out compare.html
      trilemma compare runs/digits-standard runs/digits-pgd-at --format markdown
      trilemma compare runs/digits-standard runs/digits-pgd-at --out table.csv
      trilemma compare runs/pgd-at-seed-* runs/trades-seed-* --out table.tex --bold
    """
    for path in runs:
        check_results(path)
    if out is None and form in (None, "html"):
        out = DEFAULT_PAGE
    if out is not None and not out.is_dir():
        writable_file(out)
    page = out
    try:
        table = compare_runs(runs, out, form, each, bold)
    except NotStoredError as error:
        go_on_without(error)
        table, page = compare_runs(runs, each=each), None
    if out is None and form is not None and not as_json:
        print_block(as_text(table, form, bold))
        return
    if as_json:
        print_json(
            {"runs": run_results(runs), "table": as_tree(table), "page": None if page is None else str(page)}
        )
    else:
        print_comparison(table)
        if page is not None:
            print_lines(page)


def print_comparison(table: Table) -> None:
    """Prints a table with one row per value, and the notes that belong to it."""
    print_table(table.by_value())
    if table.grouped:
        print_text(SEEDS_NOTE)
    for entry in table.entries:
        for note in entry.notes:
            print_text(f"not comparable: {entry.path}, {entry.checkpoint}: {note}")
