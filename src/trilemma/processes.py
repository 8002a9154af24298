"""Runs functions in several processes at once; passes on their messages and errors, and interruptions to them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from trilemma.errors import TrilemmaError
from trilemma.storing import collecting_unstored

# Seconds between two calls of ``idle``, and for which an interrupted process may save its state.
INTERVAL, PATIENCE = 1.0, 60.0
# The number of threads of a process, read by torch and by the libraries of NumPy when they are loaded.
THREADS = "OMP_NUM_THREADS"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One function call: ``function(say, *arguments)``, where ``say`` sends a line of text.

    Attributes:
        name: of the job, for messages.
        function: a function of a module, since another process imports it.
        arguments: values that can be pickled.
        log: file for the output of its process, replaced if it exists; by default the output of this process.
        threads: number of threads of its process; by default as many as this process was started with.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    log: Path | None = None
    threads: int | None = None


def run_jobs(
    jobs: Iterable[Job],
    workers: int,
    said: Callable[[str, str], None],
    ended: Callable[[str, BaseException | None], None],
    idle: Callable[[], None],
) -> None:
    """Runs jobs in their order, as many at once as there are workers.

    If this process is killed, its processes are interrupted as by SIGTERM.

    Args:
        jobs: the jobs.
        workers: number of processes; 0 runs the jobs in this process, whose log and threads are not changed.
        said: called with the name of a job and a line that it sent.
        ended: called with the name of a job that has ended, and the exception that ended it, or ``None``: a
            :class:`TrilemmaError` or an interruption of this job alone, or a ``RuntimeError`` if the process ended
            otherwise (a traceback is in its output). An exception that ``ended`` raises interrupts the other jobs.
        idle: called about once a second while processes work.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM, after the processes were interrupted and have ended.
    """
    waiting = list(jobs)
    # A forked process would share locks of the threads of torch.
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[Job, Any]] = {}
    with sigterm_interrupts():
        if workers == 0:
            for job in waiting:
                ended(job.name, _run_here(job, said))
            return
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(sender, job))
                    with _threads(job.threads):
                        process.start()
                    # The process has the only writing end, so that its end is the end of the pipe.
                    sender.close()
                    running[receiver] = (job, process)
                ready = wait(list(running), INTERVAL)
                for receiver in [one for one in running if one in ready]:
                    job, process = running[receiver]
                    try:
                        message = receiver.recv()
                    except EOFError:
                        process.join()
                        name = killed_by(process.exitcode)
                        how = f"killed by {name}" if name else f"exit code {process.exitcode}"
                        message = RuntimeError(
                            f"{job.name}: its process ended before its work was done ({how})"
                        )
                    if isinstance(message, str):
                        said(job.name, message)
                        continue
                    process.join()
                    del running[receiver]
                    ended(job.name, message)
                idle()
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join(PATIENCE)
                process.kill()


def _run_here(job: Job, said: Callable[[str, str], None]) -> TrilemmaError | None:
    try:
        job.function(lambda text: said(job.name, text), *job.arguments)
    except TrilemmaError as error:
        return error
    return None


def by_launcher() -> bool:
    """Whether ``torchrun`` or ``fabric run`` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_rank() -> int:
    """The rank of this process among those that train a run together, as whoever started it has set it."""
    # On a further machine of a launcher, the first process has the local rank 0 too.
    return int(os.environ.get("RANK" if by_launcher() else "LOCAL_RANK", "0"))


def killed_by(code: int | None) -> str | None:
    """The name of the signal that killed a process, from its exit code; ``None`` if none did."""
    if code is None or code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    # A real-time signal has a number only.
    except ValueError:
        return f"signal {-code}"


def how_ended(code: int | None) -> str:
    """How a process has ended, in words, from its exit code."""
    name = killed_by(code)
    if name is None:
        return f"has ended (exit code {code})"
    return f"was killed by {name}" + (" (often for lack of memory)" if name == "SIGKILL" else "")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Context in which a process that is started gets ``count`` threads; ``None`` changes nothing."""
    before = os.environ.get(THREADS)
    if count is not None:
        os.environ[THREADS] = str(count)
    try:
        yield
    finally:
        if count is not None:
            os.environ.pop(THREADS)
            os.environ |= {} if before is None else {THREADS: before}


def _work(sender: Connection, job: Job) -> None:
    """Runs a job in its process and sends its messages, and at the end ``None`` or its error."""
    # Ctrl-C reaches the first process alone, which interrupts the others once.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if job.log is not None:
        with job.log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with sigterm_interrupts(), collecting_unstored() as errors:
            job.function(sender.send, *job.arguments)
        if errors:
            raise errors[0]
    except (TrilemmaError, KeyboardInterrupt) as error:
        sender.send(error)
    else:
        sender.send(None)


def _end_with_parent() -> None:
    """Interrupts this process when the process that started it has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Context in which SIGTERM raises :class:`KeyboardInterrupt`, as Ctrl-C does."""
    previous_handler = None
    # Only the main thread may set signal handlers.
    if threading.current_thread() is threading.main_thread():
        previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        if previous_handler is not None:
            signal.signal(signal.SIGTERM, previous_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
