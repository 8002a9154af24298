"""Progress of slow jobs (downloads, first decodes) on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int | None, unit_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar that vanishes when done; yields ``advance(amount)``. Drawn only if stderr is a terminal.

    Args:
        title: what is being done.
        total: how much there is, or ``None`` if nobody said.
        unit_bytes: count bytes instead of things.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    count = DownloadColumn() if unit_bytes else MofNCompleteColumn()
    columns = ("{task.description}", BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)
