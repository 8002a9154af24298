"""The processes of one run: starts the further ones, and ends all of them with one line when one is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trilemma import shares
from trilemma.errors import ConfigError, ProcessLostError, TrainingFailedError
from trilemma.printing import print_message
from trilemma.processes import by_launcher, how_ended, started_rank
from trilemma.shares import Share

# Seconds between two looks at the other processes; for which a further process with an error of its own waits, because
# the first one may have the same error and then reports it; and after which processes that do not end are killed.
INTERVAL, DELAY, PATIENCE = 0.5, 2.0, 10.0
_NO_PARENT = "the process that started this one has ended"
# Exit codes of the further processes, which print nothing: those of the command.
_LOST, _FAILED, _INTERRUPTED = 2, 3, 130


def nodes(count: int) -> int:
    """The number of machines over which ``torchrun`` or ``fabric run`` has started ``count`` processes; otherwise 1.

    Raises:
        ConfigError: they have started another number of processes.
    """
    if not by_launcher():
        return 1
    started = int(os.environ["WORLD_SIZE"])
    if started != count:
        raise ConfigError(
            f"devices: {count}, but the launcher has started {started} processes; set devices={started}"
        )
    return int(os.environ["GROUP_WORLD_SIZE"])


def create_fabric(**settings: Any) -> Any:
    """Lightning Fabric with these settings, not launched yet.

    Raises:
        ConfigError: ``fabric run`` was given an option that contradicts them.
    """
    # Imported here because the import takes seconds.
    from lightning_fabric import Fabric

    try:
        return Fabric(**settings)
    except ValueError as error:
        if not _by_fabric_run() or "CLI" not in str(error):
            raise
        given = ", ".join(
            f"--{key} {value}"
            for key in ("accelerator", "strategy", "precision")
            if (value := os.environ.get(f"LT_{key.upper()}")) not in (None, settings[key])
        )
        raise ConfigError(
            f"fabric run: {given}: contradicts the recipe or the device; leave it out of the command, since "
            "training.precision and --device say it"
        ) from None


def _by_fabric_run() -> bool:
    return os.environ.get("LT_CLI_USED") == "1"


def _launch(fabric: Any) -> None:
    # Started by `fabric run`, Fabric has joined the processes when it was created, and refuses a launch.
    if not _by_fabric_run():
        fabric.launch()


@contextmanager
def processes(fabric: Any, count: int, run: Path) -> Iterator[Share]:
    """Context in which the processes of a run train; yields the share of this process.

    Starts the further processes, unless a launcher such as ``torchrun`` has: each runs the program from its beginning
    up to this line. If one of them ends early, however that happens, all end: of an error, of Ctrl-C, or because the
    system has killed it. One of them reports: the first, or if that was killed, the second.

    Args:
        fabric: Lightning Fabric, not launched yet.
        count: number of processes.
        run: the run folder, for messages.

    Raises:
        ProcessLostError: another process has ended, or does not answer.
    """
    if count == 1:
        _launch(fabric)
        with shares.among(0, 1) as share:
            yield share
        return
    environment = fabric.strategy.cluster_environment
    watch = _Watch([] if environment.creates_processes_externally else _start(environment, count), run, count)
    try:
        with watch:
            _launch(fabric)
            with shares.among(fabric.global_rank, count) as share:
                yield share
    except BaseException as error:
        if fabric.global_rank == 0:
            lost = watch.lost(wait=isinstance(error, ProcessLostError))
            watch.end()
            if isinstance(error, ProcessLostError):
                raise ProcessLostError(_message(run, lost or str(error))) from None
            raise
        watch.leave(error, fabric.global_rank)
        raise


def _start(environment: Any, count: int) -> list[subprocess.Popen[bytes]]:
    """Starts this program once for each further process, with the variables that Fabric and torch read."""
    os.environ |= {
        "MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port), "NODE_RANK": "0",
        "LOCAL_RANK": "0", "WORLD_SIZE": str(count),
    }  # fmt: skip
    main = sys.modules["__main__"]
    specification = getattr(main, "__spec__", None)
    program = [os.path.abspath(sys.argv[0])] if specification is None else ["-m", specification.name]
    command = [sys.executable, *program, *sys.argv[1:]]
    return [
        subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}) for rank in range(1, count)
    ]


def _message(run: Path, reason: str) -> str:
    return (
        f"{run}: {reason}; the run ends in all processes; resume it from its last checkpoint with: "
        f"trilemma train {run} --resume"
    )


class _Watch:
    """Watches the other processes of this machine while they train; use it as a context manager.

    An exchange with a process that has ended fails at once with gloo, but waits for minutes with NCCL, and so does the
    first meeting of all processes. The watch then ends this process.

    Args:
        children: the further processes, of the first process; the others watch the first.
        run: the run folder, for messages.
        count: number of processes.
    """

    def __init__(self, children: Sequence[subprocess.Popen[bytes]], run: Path, count: int) -> None:
        self.children, self.run, self.count = children, run, count
        self._parent, self._stopped = os.getppid(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="process-watch")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stopped.set()

    def lost(self, wait: bool = False) -> str | None:
        """Which process has ended early, and how; ``None`` if none has.

        Args:
            wait: look for a few seconds: the other side of a connection closes before a process has ended.
        """
        until = time.monotonic() + (PATIENCE if wait else 0.0)
        while True:
            for rank, child in enumerate(self.children, 1):
                if child.poll():
                    return f"process {rank} of {self.count} {how_ended(child.returncode)}"
            if not self.children and self._orphaned():
                return _NO_PARENT
            if time.monotonic() >= until:
                return None
            time.sleep(0.1)

    def _orphaned(self) -> bool:
        """Whether the process that started this one has ended; ``False`` for the first process."""
        return os.getppid() != self._parent

    def _look(self) -> None:
        while not self._stopped.wait(INTERVAL):
            lost = self.lost()
            if lost is None:
                continue
            # Time to end by itself, with an error of its own or a saved state.
            if not self._stopped.wait(PATIENCE):
                self.end(at_once=True)
                if self.children or started_rank() == 1:
                    print_message(f"trilemma: error: {_message(self.run, lost)}")
                os._exit(_LOST)
            return

    def end(self, at_once: bool = False) -> None:
        """Ends the further processes: those that do not end by themselves are killed."""
        until = time.monotonic() + (0.0 if at_once else INTERVAL)
        while time.monotonic() < until and any(child.poll() is None for child in self.children):
            time.sleep(0.05)
        for child in self.children:
            child.kill()
            child.wait()

    def leave(self, error: BaseException, rank: int) -> None:
        """Ends a further process whose error the first one reports; returns if it has to report the error itself.

        Raises:
            SystemExit: the first process reports.
        """
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(_INTERRUPTED) from None
        # The first process, if it has the same error, ends this one meanwhile.
        time.sleep(DELAY)
        if isinstance(error, ProcessLostError):
            if rank == 1 and self._orphaned():
                raise ProcessLostError(_message(self.run, _NO_PARENT)) from None
            raise SystemExit(_LOST) from None
        if isinstance(error, TrainingFailedError):
            raise SystemExit(_FAILED) from None
