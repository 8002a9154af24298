"""What the command line prints: results on standard output, progress and complaints on standard error."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def complain(message: str, kind: str = "error: ") -> None:
    """One line on standard error, whatever the message holds."""
    print(f"trilemma: {kind}{' '.join(message.splitlines())}", file=sys.stderr)


def tell(message: str, quiet: bool = False) -> None:
    """A line of progress on standard error; nothing when ``quiet``."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


def watched(quiet: bool) -> bool:
    """Whether to draw a progress bar: somebody looks at standard error, and wants it."""
    return not quiet and sys.stderr.isatty()


def print_json(value: object) -> None:
    """A result for machines: indented JSON on standard output; a number that is not finite is ``null``."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(rows: Sequence[Mapping[str, object]], title: str | None = None) -> None:
    """A table on standard output: one column per key of the first row.

    On a terminal it fits the width; in a pipe or a file no cell is ever folded.
    """
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in rows[0]:
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    terminal = sys.stdout.isatty()
    text = io.StringIO()  # printed by us: rich itself would answer a closed pipe with exit code 1
    width = shutil.get_terminal_size().columns if terminal else 400
    console = Console(
        file=text, width=width, force_terminal=terminal, markup=False, highlight=False, emoji=False
    )
    console.print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip()))


def share(value: float | None) -> str | None:
    """``"97.5%"`` for 0.975; ``None`` stays."""
    return None if value is None else f"{value:.1%}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
