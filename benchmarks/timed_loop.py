"""The library's own training loop in turns with other work, in one process, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lightning_fabric import Fabric

from trilemma import memory
from trilemma.config.config import Config
from trilemma.data.batch import Batch
from trilemma.data.image_set import Splits
from trilemma.memory import freed_memory_kept
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.interrupt import StopRequest
from trilemma.training.loop import Loop
from trilemma.training.progress import reporter
from trilemma.training.record import Record

OURS = "trilemma"
Turn = Callable[[], object]


class Seconds(NamedTuple):
    """Wall and processor seconds."""

    wall: float
    cpu: float


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> Seconds:
        return Seconds(time.perf_counter() - self.wall, time.process_time() - self.cpu)


@contextmanager
def adapted_malloc(largest: int) -> Iterator[None]:
    """The thresholds that glibc has adapted to a program by itself, which a process can set but not get back.

    A freed mapping of up to 32 MB sets the size from which blocks are mappings of their own, and twice that size the
    end of the heap that is returned to the system (``mallopt(3)``).

    Args:
        largest: the largest such block of the program, in bytes.
    """
    library = memory._glibc()
    if library is not None:
        memory._set(library, {memory._MMAP_THRESHOLD: largest, memory._TRIM_THRESHOLD: 2 * largest})
    try:
        yield
    finally:
        if library is not None:
            memory._set(library, memory._DEFAULTS)


class Other(NamedTuple):
    """Another turn: the work of a step, and the context in which it runs."""

    work: Turn
    context: Callable[[], AbstractContextManager[None]]


def timed(other: Other, count: int) -> Seconds:
    """Seconds of one call of the work, from ``count`` calls after one that warms up."""
    work = other.work
    with other.context():
        work()
        clock = Clock()
        for _ in range(count):
            work()
        seconds = clock.read()
    return Seconds(seconds.wall / count, seconds.cpu / count)


class Done(Exception):  # noqa: N818
    """Every round is timed."""


class TimedLoop(Loop):
    """The loop as it is, a segment of steps at a time, between the other turns.

    A segment begins with one step more, which warms up and is not timed. Evaluations and checkpoints are no part of a
    segment as long as an epoch is longer than all rounds.

    Attributes:
        seconds: of every round, seconds per call of each turn and per step of the loop (``trilemma``).
    """

    others: Mapping[str, Other]
    segment: int
    rounds: int

    def train(self) -> str:
        self.seconds: list[dict[str, Seconds]] = []
        self._clock: Clock | None = None
        self._kept = freed_memory_kept(self.fabric.device)
        self._kept.__enter__()
        try:
            return super().train()
        finally:
            self._kept.__exit__(None, None, None)

    def _one_step(self, batch: Batch) -> None:
        place = self.state.step % (self.segment + 1)
        if place == 0:
            self._end_of_segment()
        if place == 1:
            self._clock = Clock()
        super()._one_step(batch)

    def _end_of_segment(self) -> None:
        own = None if self._clock is None else self._clock.read()
        if own is not None:
            ours = Seconds(own.wall / self.segment, own.cpu / self.segment)
            self._kept.__exit__(None, None, None)
            others = {name: timed(other, self.segment) for name, other in self.others.items()}
            self._kept = freed_memory_kept(self.fabric.device)
            self._kept.__enter__()
            self.seconds.append({OURS: ours, **others})
        if len(self.seconds) == self.rounds:
            raise Done


def create_loop(folder: Path, config: Config, data: Splits) -> TimedLoop:
    """The loop of a run in ``folder``, on the CPU."""
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    name = config.method.name
    record = Record(RunDirectory.create(folder, config), config, reporter(name, False), name, True)
    return TimedLoop(config, record, data, fabric, StopRequest())


def run_rounds(
    loop: TimedLoop, others: Mapping[str, Other], segment: int, rounds: int
) -> list[dict[str, Seconds]]:
    """Seconds per step of the loop and per call of the others, of every round.

    Args:
        others: by name.
        segment: timed steps of each turn.
        rounds: number of rounds.
    """
    loop.others, loop.segment, loop.rounds = others, segment, rounds
    with suppress(Done):
        loop.train()
    return loop.seconds
