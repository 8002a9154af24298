"""Where the runs of a sweep are made: in processes of this machine, or as jobs of a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trilemma.errors import ConfigError, MissingExtraError, describe
from trilemma.processes import INTERVAL, THREADS, Job, Say, run_jobs, sigterm_interrupts
from trilemma.sweeps.task import Task

# Called with a task that has ended, and why it failed in one line, or ``None``.
Ended = Callable[[Task, str | None], None]
LAUNCHERS = ("local", "slurm")


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(tasks: Sequence[Task], jobs: int, ended: Ended, idle: Callable[[], None]) -> None:
    """Runs tasks in processes of this machine; a single one at a time in this process, with all of its threads.

    Several processes share the cores, unless the environment variable ``OMP_NUM_THREADS`` sets their threads.

    Args:
        tasks: the tasks.
        jobs: number of tasks at once.
        ended: called after each task.
        idle: called about once a second while processes work.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM, after every task has saved its state.
    """
    by_name, lines = {task.name: task for task in tasks}, dict[str, str]()
    threads = None if THREADS in os.environ else max(1, cores() // jobs)

    def job_ended(name: str, error: BaseException | None) -> None:
        line = lines.get(name)
        if line is None and error is not None:
            line = (
                "interrupted"
                if isinstance(error, KeyboardInterrupt)
                else str(error).removeprefix(f"{name}: ")
            )
            line += f"; its output is in {by_name[name].log}"
        ended(by_name[name], line)

    work = [Job(task.name, _do, (task,), task.log, threads) for task in tasks]
    run_jobs(work, 0 if jobs == 1 else jobs, lines.__setitem__, job_ended, idle)


def _do(say: Say, task: Task) -> None:
    if (line := task()) is not None:
        say(line)


def run_submitted(
    executor: Any, tasks: Sequence[Task], jobs: int, ended: Ended, idle: Callable[[], None]
) -> None:
    """Runs tasks as jobs of an executor of submitit.

    Args:
        executor: its ``submit(function)`` returns a job with ``done()``, ``result()`` and ``cancel()``.
        tasks, jobs, ended, idle: as of :func:`run_local`.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM, after the jobs were cancelled.
    """
    waiting, running = list(tasks), list[tuple[Task, Any]]()
    with sigterm_interrupts():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    task = waiting.pop(0)
                    running.append((task, executor.submit(task)))
                for task, job in [pair for pair in running if pair[1].done()]:
                    running.remove((task, job))
                    ended(task, _outcome(job))
                idle()
                time.sleep(INTERVAL if running else 0)
        finally:
            for _, job in running:
                job.cancel()


def _outcome(job: Any) -> str | None:
    """Returns what the task of a job returned, or in one line how the job ended without it."""
    try:
        line: str | None = job.result()
    except Exception as error:
        # Of submitit: the job was killed, has run out of time, or could not be started.
        return f"{describe(error)}; its output is in {job.paths.stderr}"
    return line


def slurm_executor(folder: Path, options: Mapping[str, Any]) -> Any:
    """Returns submitit's executor for a Slurm cluster.

    Args:
        folder: for the files of the jobs.
        options: parameters of the executor, such as ``{"partition": "gpu", "time": 240}``.

    Raises:
        MissingExtraError: submitit is not installed.
        ConfigError: this machine cannot submit to a cluster, or an unknown option.
    """
    try:
        import submitit
    except ImportError:
        raise MissingExtraError(
            "--launcher slurm: submitit is not installed; pip install 'trilemma[slurm]', or use --launcher local"
        ) from None
    try:
        executor = submitit.SlurmExecutor(folder=folder)
    except RuntimeError as error:
        raise ConfigError(
            f"--launcher slurm: {error}; run it where `sbatch` works, or use --launcher local"
        ) from None
    try:
        executor.update_parameters(**options)
    except (TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"--slurm: {words}") from None
    return executor
