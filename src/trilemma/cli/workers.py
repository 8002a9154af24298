"""Runs functions in several processes at once; passes on their messages and errors, and interruptions to them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from trilemma.cli.exits import sigterm_interrupts
from trilemma.errors import TrilemmaError
from trilemma.storing import collecting_unstored

# Seconds between two calls of ``idle``, and for which an interrupted process may save its state.
INTERVAL, PATIENCE = 1.0, 60.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One function call: ``function(say, *arguments)``, where ``say`` sends a line of text.

    Attributes:
        name: of the job, for messages.
        function: a function of a module, since another process imports it.
        arguments: values that can be pickled.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def run_jobs(
    jobs: Iterable[Job],
    workers: int,
    said: Callable[[str, str], None],
    finished: Callable[[str], None],
    idle: Callable[[], None],
) -> None:
    """Runs jobs in their order, as many at once as there are workers; one worker runs them in this process.

    Args:
        jobs: the jobs.
        workers: number of processes.
        said: called with the name of a job and a line that it sent.
        finished: called with the name of a job that has ended.
        idle: called about once a second while processes work.

    Raises:
        TrilemmaError: of the first job that fails; the others are interrupted.
        KeyboardInterrupt: SIGINT or SIGTERM, after the processes were interrupted and have ended.
        RuntimeError: a process ended without a result; its traceback is on standard error.
    """
    waiting = list(jobs)
    if workers == 1:
        for job in waiting:
            job.function(lambda text, name=job.name: said(name, text), *job.arguments)
            finished(job.name)
        return
    # A forked process would share locks of the threads of torch.
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[Job, Any]] = {}
    with sigterm_interrupts():
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(sender, job))
                    process.start()
                    # The process has the only writing end, so that its end is the end of the pipe.
                    sender.close()
                    running[receiver] = (job, process)
                ready = wait(list(running), INTERVAL)
                for receiver in [one for one in running if one in ready]:
                    job, process = running[receiver]
                    if _receive(receiver, job, said):
                        process.join()
                        del running[receiver]
                        finished(job.name)
                idle()
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join(PATIENCE)
                process.kill()


def _receive(receiver: Connection, job: Job, said: Callable[[str, str], None]) -> bool:
    """Passes on one message of a process; returns whether its job is done."""
    try:
        message = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{job.name}: its process ended before its work was done") from None
    if isinstance(message, BaseException):
        raise message
    if message is not None:
        said(job.name, message)
    return message is None


def _work(sender: Connection, job: Job) -> None:
    """Runs a job in its process and sends its messages, and at the end ``None`` or its error."""
    # Ctrl-C reaches the first process alone, which interrupts the others once.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    try:
        with sigterm_interrupts(), collecting_unstored() as errors:
            job.function(sender.send, *job.arguments)
        if errors:
            raise errors[0]
    except (TrilemmaError, KeyboardInterrupt) as error:
        sender.send(error)
    else:
        sender.send(None)
