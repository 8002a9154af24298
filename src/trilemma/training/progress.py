"""What a person sees while a run goes on: one line, on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from trilemma.progress import ProgressBar, standard_error_is_a_terminal


class Reporter(Protocol):
    """Gets every logged row and every message."""

    def row(self, row: dict[str, Any], done: float, seconds_left: float) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(row: dict[str, Any], seconds_left: float) -> str:
    """Loss, batch accuracies, the three mean energies, images per second and time left, as one line."""
    parts = [f"epoch {row['epoch']:.1f}", f"loss {row['loss']:.3f}"]
    for name, key in (("clean", "clean_accuracy"), ("robust", "robust_accuracy")):
        if row.get(key) is not None:
            parts.append(f"{name} {row[key]:.2f}")
    energies = [row.get(f"energy_{name}") for name in ("clean", "adversarial", "generated")]
    shown = "/".join("-" if e is None else f"{e:.1f}" for e in energies)
    parts += [f"E(x/x*/x^) {shown}", f"{row['images_per_second']:.0f} img/s", f"{_clock(seconds_left)} left"]
    return "  ".join(parts)


class Silent:
    """Says nothing."""

    def row(self, row: dict[str, Any], done: float, seconds_left: float) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """A plain line every few seconds: for logs and pipes.

    Args:
        name: what is being trained, at the head of each line.
        every: seconds between lines.
    """

    def __init__(self, name: str, every: float = 10.0) -> None:
        self.name = name
        self.every = every
        self.last = 0.0

    def row(self, row: dict[str, Any], done: float, seconds_left: float) -> None:
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self.message(f"{done:4.0%}  {describe(row, seconds_left)}")

    def message(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None: ...


class Bar:
    """A progress bar for a terminal.

    Args:
        name: what is being trained.
    """

    def __init__(self, name: str) -> None:
        self.bar = ProgressBar(name, 1.0, unit="share", transient=False)
        self.bar.__enter__()

    def row(self, row: dict[str, Any], done: float, seconds_left: float) -> None:
        self.bar.update(done=done, text=describe(row, seconds_left))

    def message(self, text: str) -> None:
        self.bar.message(text)

    def close(self) -> None:
        self.bar.close()


def reporter(name: str, wanted: bool) -> Reporter:
    """A bar on a terminal, plain lines elsewhere, or nothing."""
    if not wanted:
        return Silent()
    return Bar(name) if standard_error_is_a_terminal() else Lines(name)
