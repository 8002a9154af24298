"""Ctrl-C and SIGTERM end a run after the current step, with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Set by the first signal; the second one interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, SIGINT and SIGTERM only set the request; the former handlers are put back after."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
