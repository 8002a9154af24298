"""Computations in a thread of their own that report on their way and can be stopped at any forward pass."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trilemma.classifier.classifier import Classifier
from trilemma.errors import TrilemmaError

# Seconds between two signs of life of a computation that reports nothing itself.
BEAT = 0.5


class StoppedError(TrilemmaError):
    """The computation was stopped before its end."""


@dataclass
class Work:
    """What is known of a computation.

    Attributes:
        stop: set it from any thread to stop the computation at its next forward pass.
        passes: forward passes of the network so far.
        began: time of the start, of :func:`time.monotonic`; 0 while it waits for another one.
    """

    stop: threading.Event
    passes: int = 0
    began: float = 0.0


@dataclass(frozen=True)
class Beat:
    """A sign of life: forward passes and seconds so far; ``seconds`` is ``None`` while it waits for another one."""

    passes: int
    seconds: float | None


@dataclass(frozen=True)
class Done:
    """The end of a computation, with its result."""

    result: Any


class Jobs:
    """The computations of all sessions of a page: each session has at most one, and all of them wait for each other.

    A network has one set of modes and hooks, so that two computations at once would disturb each other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    def run(
        self, session: str, clf: Classifier, compute: Callable[[Callable[[Any], None]], Any]
    ) -> Generator[Any, None, None]:
        """Yields what ``compute`` reports, a :class:`Beat` every half second without a report, and :class:`Done`.

        Closing the generator stops the computation and waits for it.

        Args:
            session: whose computation it is; an earlier one of the same session is stopped.
            clf: the classifier through whose forward passes the computation can be stopped.
            compute: called in another thread with a function that reports.

        Raises:
            StoppedError: the computation was stopped.
            Exception: whatever ``compute`` raises.
        """
        self.stop(session)
        work = Work(self._stops.setdefault(session, threading.Event()))
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def target() -> None:
            while not self._lock.acquire(timeout=0.1):
                if work.stop.is_set():
                    items.put(StoppedError("stopped before it began"))
                    return
            try:
                work.began = time.monotonic()
                with counted(clf, work):
                    items.put(Done(compute(items.put)))
            # Raised again in the thread that reads the queue.
            except BaseException as error:
                items.put(error)
            finally:
                self._lock.release()

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        try:
            while True:
                try:
                    item = items.get(timeout=BEAT)
                except queue.Empty:
                    yield Beat(work.passes, time.monotonic() - work.began if work.began else None)
                    continue
                if isinstance(item, BaseException):
                    # A network may hide the exception of the hook behind its own.
                    if work.stop.is_set():
                        raise StoppedError(f"stopped after {work.passes} forward passes") from None
                    raise item
                yield item
                if isinstance(item, Done):
                    return
        finally:
            work.stop.set()
            thread.join()
            if self._stops.get(session) is work.stop:
                del self._stops[session]

    def stop(self, session: str) -> bool:
        """Stops the computation of a session; returns whether there was one."""
        running = self._stops.pop(session, None)
        if running is not None:
            running.set()
        return running is not None

    def stop_all(self) -> None:
        """Stops the computations of all sessions."""
        for session in list(self._stops):
            self.stop(session)


@contextmanager
def counted(clf: Classifier, work: Work) -> Iterator[None]:
    """A context in which forward passes are counted, and raise :class:`StoppedError` once ``work.stop`` is set."""

    def before(*_: Any) -> None:
        if work.stop.is_set():
            raise StoppedError("stopped")
        work.passes += 1

    handle = clf.network.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
