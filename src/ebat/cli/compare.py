"""``ebat compare``: several runs in one table and on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ebat.cli.console import print_json
from ebat.cli.folder import writable_folder
from ebat.cli.options import Json
from ebat.cli.results import print_results, results
from ebat.errors import RunError
from ebat.training.run_directory import RunDirectory


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the page to write")] = Path(
        "compare.html"
    ),
    as_json: Json = False,
) -> None:
    """Puts runs side by side: a table, and a page with plots.

    The page needs no network. Rows that were measured by different protocols or on different data are
    not comparable; the page names both. Evaluate each run first.

    \b
    Example:
      ebat compare runs/digits-standard runs/digits-pgd-at runs/digits-eb-jdat --out compare.html
    """
    for path in runs:
        RunDirectory.open(path)
    if out.is_dir():
        raise RunError(f"{out}: is a folder; --out names the page, such as {out / 'compare.html'}")
    writable_folder(out.parent)
    from ebat.report.comparison import write_comparison

    page = write_comparison(runs, out)
    rows = results(runs)
    if as_json:
        print_json({"runs": rows, "page": str(page)})
    else:
        print_results(rows)
        print(page)
