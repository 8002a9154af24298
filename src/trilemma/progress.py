"""The progress bar for images, files, bytes and training steps: on standard error, or in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Protocol

from trilemma.printing import print_message, visible_line

# Called with the number of further images, files or bytes that are done.
Advance = Callable[[int], None]


def silent(amount: int) -> None:
    """An :data:`Advance` that shows nothing."""


class _Drawing(Protocol):
    """Where a bar is drawn."""

    def start(self) -> None: ...
    def set(
        self, title: str | None, done: float | None, text: str, advance: float | None, left: float | None
    ) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


class ProgressBar:
    """A progress bar with a title, a text and the time; use it as a context manager.

    In a notebook it is one output that is updated, elsewhere it is a line on standard error: the bar, the share done
    and the time left come first, and what does not fit the width of the terminal is cut off at the end.

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

    @property
    def drawn(self) -> bool:
        """Whether the bar is drawn."""
        return self._drawing is not None

    def advance(self, amount: float) -> None:
        """Adds ``amount`` to the completed work."""
        if self._drawing is not None:
            self._drawing.set(None, None, "", amount, None)

    def update(
        self,
        title: str | None = None,
        done: float | None = None,
        text: str = "",
        advance: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Sets the title, the completed work ``done`` and the text, or adds ``advance`` to the completed work.

        Args:
            seconds_left: an estimate of the remaining time; by default from the work completed so far.
        """
        if self._drawing is not None:
            self._drawing.set(title, done, text, advance, seconds_left)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._drawing is not None:
            self._drawing.message(text)

    def close(self) -> None:
        """Stops drawing."""
        if self._drawing is not None:
            self._drawing.stop()


def clock(seconds: float) -> str:
    """Returns a duration as ``1:02:03``, or ``2:03`` below one hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def line_words(
    title: str, done: float, total: float | None, seconds_left: float | None, unit: str, text: str = ""
) -> str:
    """Returns the words behind a bar, the most important first: share done, time left, title, amount, text."""
    parts = []
    if total and unit != "text":
        parts.append(f"{min(done / total, 1):4.0%}")
    if seconds_left is not None:
        parts.append(f"{clock(seconds_left)} left")
    parts.append(title)
    if total and unit in ("count", "bytes"):
        scale, name = (1e6, " MB") if unit == "bytes" else (1, "")
        parts.append(f"{done / scale:.0f}/{total / scale:.0f}{name}")
    return "  ".join(part for part in (*parts, text) if part)


class _TerminalBar:
    """A line of rich on standard error; arguments as of :class:`ProgressBar`."""

    def __init__(self, title: str, total: float | None, unit: str, transient: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress, ProgressColumn, Task
        from rich.table import Column
        from rich.text import Text

        console = Console(stderr=True)

        class Line(ProgressColumn):
            """The whole line in one column, so that rich cuts it at its end instead of shrinking every part."""

            def render(self, task: Task) -> Text:
                width = 20 if console.width >= 100 else 12
                filled = round(width * min(task.completed / task.total, 1)) if task.total else 0
                mark = "-" if console.options.ascii_only else "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
                left = task.fields["left"] if task.fields["left"] is not None else task.time_remaining
                words = line_words(
                    task.description, task.completed, task.total, left, unit, task.fields["text"]
                )
                bar = Text(mark * filled, "bar.complete").append(mark * (width - filled), "bar.back")
                line = bar.append(f" {visible_line(words)}", "")
                line.no_wrap, line.overflow = True, "ellipsis"
                return line

        column = Line(table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._progress = Progress(column, console=console, transient=transient)
        self._task = self._progress.add_task(title, total=total, text="", left=None)

    def start(self) -> None:
        self._progress.start()

    def set(
        self, title: str | None, done: float | None, text: str, advance: float | None, left: float | None
    ) -> None:
        self._progress.update(
            self._task, description=title, completed=done, text=text, advance=advance, left=left
        )

    def message(self, text: str) -> None:
        from rich.text import Text

        # Not as a str, in which rich would read brackets as markup.
        self._progress.console.print(Text(visible_line(text)))

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
        self.left: float | None = None
        self.began = time.monotonic()
        self.drawn = 0.0
        self._handle: Any = None

    def start(self) -> None:
        from IPython.display import display

        self._handle = display(self._content(), raw=True, display_id=True)

    def set(
        self, title: str | None, done: float | None, text: str, advance: float | None, left: float | None
    ) -> None:
        self.left = left
        self.title = self.title if title is None else title
        self.done = (self.done if done is None else done) + (advance or 0.0)
        self.text = text
        if time.monotonic() - self.drawn > self.EVERY_SECONDS:
            self._draw(self._content())

    def message(self, text: str) -> None:
        print_message(text)

    def stop(self) -> None:
        nothing = {"text/plain": "", "text/html": ""}
        self._draw(nothing if self.transient else self._content())

    def _draw(self, content: dict[str, str]) -> None:
        if self._handle is not None:
            self.drawn = time.monotonic()
            self._handle.update(content, raw=True)

    def _content(self) -> dict[str, str]:
        left = "" if self.left is None else f"{clock(self.left)} left"
        words = " ".join(text for text in (self._amount(), left, self.text) if text)
        share = "" if self.total is None else f' max="{self.total:g}" value="{self.done:g}"'
        html = f"{escape(self.title)} <progress{share}></progress> {escape(words)}"
        return {"text/plain": visible_line(f"{self.title} {words}"), "text/html": html}

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
