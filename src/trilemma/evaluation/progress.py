"""A progress bar on standard error for work that is counted in images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


def silent(images: int) -> None:
    """Shows nothing."""


@contextmanager
def bar(name: str, count: int, shown: bool) -> Iterator[Advance]:
    """Inside, the yielded function is told how many more of ``count`` images are done."""
    if not shown:
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=count)
        yield lambda images: progress.update(task, advance=images)
