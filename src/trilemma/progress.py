"""The progress bar for images, files, bytes and training steps: on standard error, or in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Protocol

# Called with the number of further images, files or bytes that are done.
Advance = Callable[[int], None]


def silent(amount: int) -> None:
    """An :data:`Advance` that shows nothing."""


class _Drawing(Protocol):
    """Where a bar is drawn."""

    def start(self) -> None: ...
    def set(self, title: str | None, done: float | None, text: str, advance: float | None) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


class ProgressBar:
    """A progress bar with a title, a text and the time; use it as a context manager.

    In a notebook it is one output that is updated, elsewhere it is drawn on standard error.

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
        self._drawing: _Drawing | None = None
        if shown:
            drawing = _NotebookBar if in_notebook() else _TerminalBar
            self._drawing = drawing(title, total, unit, transient)

    def __enter__(self) -> ProgressBar:
        if self._drawing is not None:
            self._drawing.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def advance(self, amount: float) -> None:
        """Adds ``amount`` to the completed work."""
        if self._drawing is not None:
            self._drawing.set(None, None, "", amount)

    def update(
        self,
        title: str | None = None,
        done: float | None = None,
        text: str = "",
        advance: float | None = None,
    ) -> None:
        """Sets the title, the completed work ``done`` and the text, or adds ``advance`` to the completed work."""
        if self._drawing is not None:
            self._drawing.set(title, done, text, advance)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._drawing is not None:
            self._drawing.message(text)

    def close(self) -> None:
        """Stops drawing."""
        if self._drawing is not None:
            self._drawing.stop()


class _TerminalBar:
    """A bar of rich on standard error; arguments as of :class:`ProgressBar`."""

    def __init__(self, title: str, total: float | None, unit: str, transient: bool) -> None:
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
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=width), *columns,
            console=Console(stderr=True), transient=transient,
        )  # fmt: skip
        self._task = self._progress.add_task(title, total=total, text="")

    def start(self) -> None:
        self._progress.start()

    def set(self, title: str | None, done: float | None, text: str, advance: float | None) -> None:
        self._progress.update(self._task, description=title, completed=done, text=text, advance=advance)

    def message(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


class _NotebookBar:
    """One output of a notebook, as HTML and as text, updated a few times per second.

    Arguments as of :class:`ProgressBar`.
    """

    EVERY_SECONDS = 0.2

    def __init__(self, title: str, total: float | None, unit: str, transient: bool) -> None:
        self.title, self.total, self.unit, self.transient = title, total, unit, transient
        self.done, self.text = 0.0, ""
        self.began = time.monotonic()
        self.drawn = 0.0
        self._handle: Any = None

    def start(self) -> None:
        from IPython.display import display

        self._handle = display(self._content(), raw=True, display_id=True)

    def set(self, title: str | None, done: float | None, text: str, advance: float | None) -> None:
        self.title = self.title if title is None else title
        self.done = (self.done if done is None else done) + (advance or 0.0)
        self.text = text
        if time.monotonic() - self.drawn > self.EVERY_SECONDS:
            self._draw(self._content())

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        nothing = {"text/plain": "", "text/html": ""}
        self._draw(nothing if self.transient else self._content())

    def _draw(self, content: dict[str, str]) -> None:
        if self._handle is not None:
            self.drawn = time.monotonic()
            self._handle.update(content, raw=True)

    def _content(self) -> dict[str, str]:
        words = " ".join(text for text in (self._amount(), self.text) if text)
        share = "" if self.total is None else f' max="{self.total:g}" value="{self.done:g}"'
        html = f"{escape(self.title)} <progress{share}></progress> {escape(words)}"
        return {"text/plain": f"{self.title} {words}", "text/html": html}

    def _amount(self) -> str:
        seconds = f"{time.monotonic() - self.began:.0f} s"
        if self.unit == "text" or self.total is None:
            return seconds
        if self.unit == "share":
            return f"{self.done / self.total:.0%}"
        scale, name = (1e6, " MB") if self.unit == "bytes" else (1, "")
        return f"{self.done / scale:.0f}/{self.total / scale:.0f}{name} {seconds}"


@contextmanager
def bar(title: str, total: int | None, shown: bool, unit: str = "count") -> Iterator[Advance]:
    """A context with a :class:`ProgressBar`; yields its ``advance``."""
    with ProgressBar(title, total, shown, unit) as progress:
        yield progress.advance if shown else silent


def can_draw() -> bool:
    """Whether a bar can be drawn: standard error is a terminal, or the program is a notebook."""
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook. Does not import IPython."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"
