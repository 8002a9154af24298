"""The progress bar on standard error, for images, files, bytes and training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with the number of further images, files or bytes that are done.
Advance = Callable[[int], None]


def silent(amount: int) -> None:
    """An :data:`Advance` that shows nothing."""


class ProgressBar:
    """A progress bar with a title, a text and the time; use it as a context manager.

    Args:
        title: the activity.
        total: total amount of work, or ``None`` if it is unknown.
        shown: draw the bar; otherwise every call does nothing.
        unit: ``"count"`` (3/10), ``"bytes"``, ``"share"`` (30 %), or ``"text"`` (only the title and the text).
        transient: remove the bar at the end.
    """

    def __init__(
        self, title: str, total: float | None, shown: bool = True, unit: str = "count", transient: bool = True
    ) -> None:
        self._bar = None
        if not shown:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = {
            "count": (MofNCompleteColumn(), TimeElapsedColumn()),
            "bytes": (DownloadColumn(), TimeRemainingColumn()),
            "share": (TaskProgressColumn(), TextColumn("{task.fields[text]}")),
            "text": (TimeElapsedColumn(),),
        }[unit]
        width = 20 if unit == "share" else 40
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=width), *columns,
            console=Console(stderr=True), transient=transient,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=total, text="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def advance(self, amount: float) -> None:
        """Adds ``amount`` to the completed work."""
        if self._bar is not None:
            self._bar.update(self._task, advance=amount)

    def update(
        self,
        title: str | None = None,
        done: float | None = None,
        text: str = "",
        advance: float | None = None,
    ) -> None:
        """Sets the title, the completed work ``done`` and the text, or adds ``advance`` to the completed work."""
        if self._bar is not None:
            self._bar.update(self._task, description=title, completed=done, text=text, advance=advance)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)

    def close(self) -> None:
        """Stops drawing."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def bar(title: str, total: int | None, shown: bool, unit: str = "count") -> Iterator[Advance]:
    """A context with a :class:`ProgressBar`; yields its ``advance``."""
    with ProgressBar(title, total, shown, unit) as progress:
        yield progress.advance if shown else silent


def standard_error_is_a_terminal() -> bool:
    """Whether standard error is a terminal, on which a bar can be drawn."""
    import sys

    return sys.stderr.isatty()
