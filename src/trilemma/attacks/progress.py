"""Attack progress on standard error: images decided, and for the attack at work the images and the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trilemma.attacks.pool import News, Tell


@contextmanager
def watch(count: int, shown: bool) -> Iterator[Tell]:
    """Inside, the yielded function is told the news of a pool of ``count`` images."""
    if not shown:
        yield lambda news: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("clean", total=count)

        def tell(news: News) -> None:
            progress.update(task, description=str(news), advance=news.decided)

        yield tell
