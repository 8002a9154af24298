"""Handles Ctrl-C and SIGTERM: a run ends after the current step and saves its state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """A request to stop, set by the first signal; a second SIGINT interrupts immediately.

    Attributes:
        name: name of the signal, or ``None`` if there was none.
    """

    def __init__(self) -> None:
        self.name: str | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Replaces the handlers of SIGINT and SIGTERM by one that sets the request; restores them on exit."""
    request = StopRequest()
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
