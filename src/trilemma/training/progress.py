"""Shows the progress of a training run as one line on standard error, or in a notebook."""

from __future__ import annotations

import time
from typing import Any, Protocol

from trilemma.printing import print_message
from trilemma.progress import ProgressBar, can_draw, clock


class Reporter(Protocol):
    """Shows metric lines and messages of a run."""

    def metrics(self, line: dict[str, Any], done: float, seconds_left: float) -> None:
        """Shows a metric line; ``done`` is the completed fraction of the run, from 0 to 1."""

    def message(self, text: str) -> None:
        """Shows a message."""

    def close(self) -> None:
        """Ends the display."""


def describe(line: dict[str, Any]) -> str:
    """Returns epoch, loss, batch accuracies, mean energies and images per second as one line."""
    parts = [f"epoch {line['epoch']:.1f}", f"loss {line['loss']:.3f}"]
    for name, key in (("clean", "clean_accuracy"), ("robust", "robust_accuracy")):
        if line.get(key) is not None:
            parts.append(f"{name} {line[key]:.2f}")
    energies = [line.get(f"energy_{name}") for name in ("clean", "adversarial", "generated")]
    joined = "/".join("-" if e is None else f"{e:.1f}" for e in energies)
    parts += [f"E(x/x*/x^) {joined}", f"{line['images_per_second']:.0f} img/s"]
    return "  ".join(parts)


class Silent:
    """A reporter that shows nothing."""

    def metrics(self, line: dict[str, Any], done: float, seconds_left: float) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """A reporter that prints a line every few seconds, for logs and pipes.

    Args:
        name: name of the run, at the beginning of each line.
        every: smallest number of seconds between lines.
    """

    def __init__(self, name: str, every: float = 10.0) -> None:
        self.name = name
        self.every = every
        self.last_time = 0.0

    def metrics(self, line: dict[str, Any], done: float, seconds_left: float) -> None:
        now = time.monotonic()
        if now - self.last_time >= self.every:
            self.last_time = now
            self.message(f"{done:4.0%}  {clock(seconds_left)} left  {describe(line)}")

    def message(self, text: str) -> None:
        print_message(f"{self.name}: {text}")

    def close(self) -> None: ...


class Bar:
    """A reporter that shows a progress bar on a terminal or in a notebook.

    Args:
        name: name of the run, shown beside the bar.
    """

    def __init__(self, name: str) -> None:
        self.bar = ProgressBar(name, 1.0, unit="share", transient=False)
        self.bar.__enter__()

    def metrics(self, line: dict[str, Any], done: float, seconds_left: float) -> None:
        self.bar.update(done=done, text=describe(line), seconds_left=seconds_left)

    def message(self, text: str) -> None:
        self.bar.message(text)

    def close(self) -> None:
        self.bar.close()


def reporter(name: str, enabled: bool) -> Reporter:
    """Returns a progress bar on a terminal or in a notebook, else a reporter of lines; a silent one if disabled."""
    if not enabled:
        return Silent()
    return Bar(name) if can_draw() else Lines(name)
