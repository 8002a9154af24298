"""``trilemma.compare``: several runs in one table, and in a file of the chosen format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

from trilemma.errors import ConfigError, RunError
from trilemma.files import write_text
from trilemma.pages.gather import comparison_table
from trilemma.pages.table import Table, as_csv, as_latex, as_markdown, as_tree

Format = Literal["html", "markdown", "csv", "latex", "json"]
FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown", ".csv": "csv", ".json": "json",
    ".tex": "latex",
}  # fmt: skip


def compare(
    runs: Sequence[str | PathLike[str]],
    out: str | Path | None = None,
    form: Format | None = None,
    each: bool = False,
    bold: bool = False,
) -> Table:
    """Compares evaluated runs: one table, and optionally a file.

    Runs that differ by their training seed only share a line: mean, standard deviation and range.

    Args:
        runs: run folders, the runs that :func:`trilemma.train` returns, or folders of result rows.
        out: a file to write: a self-contained page with plots (``.html``), Markdown, CSV, LaTeX (``.tex``) or JSON.
        form: format of the file; by default that of its suffix.
        each: every run has a line of its own.
        bold: in LaTeX, the best value of each column in bold.

    Returns:
        The table. A column holds values of one protocol, measured on the same images with the same threat model; it
        prints itself with one row per value.

    Raises:
        RunError: a folder holds no results.
        NotStoredError: the file cannot be written.
        ConfigError: no runs, or a suffix that stands for no format.
    """
    if isinstance(runs, str | PathLike) or not runs:
        raise ConfigError(f"compare: got {runs!r}; pass a list of run folders")
    paths = [Path(run) for run in runs]
    if out is None:
        return comparison_table(paths, each)
    if Path(out).is_dir():
        raise RunError(f"{out}: is a folder; --out expects a file, such as {Path(out) / 'compare.html'}")
    chosen = form or _format_of(Path(out))
    table = comparison_table(paths, each)
    if chosen == "html":
        # Imported here, because drawing takes a second to import.
        from trilemma.pages.comparison import write_comparison

        write_comparison(paths, out, each=each)
        return table
    write_text(Path(out), as_text(table, chosen, bold))
    return table


def _format_of(file: Path) -> Format:
    """The format that the suffix of a file stands for; raises :class:`ConfigError` for an unknown one."""
    if file.suffix.lower() not in FORMAT_OF_SUFFIX:
        raise ConfigError(f"--out {file}: unknown suffix; use {', '.join(FORMAT_OF_SUFFIX)}, or add --format")
    return FORMAT_OF_SUFFIX[file.suffix.lower()]


def as_text(table: Table, form: Format, bold: bool = False) -> str:
    """The table in a text format; ``bold`` as in :func:`compare`."""
    if form == "latex":
        return as_latex(table, bold)
    if form == "json":
        return json.dumps(as_tree(table), indent=2) + "\n"
    return as_csv(table) if form == "csv" else as_markdown(table)
