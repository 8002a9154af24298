"""Several processes that compute parts of one result, each with its own copy of a classifier.

An evaluation or a generation is divided into parts of its images. One process keeps the results, writes them and
reports; the others only compute. What is random about an image comes with its part, so the result does not depend on
the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from trilemma.errors import ConfigError, ProcessLostError, TrilemmaError, describe
from trilemma.memory import freed_memory_kept
from trilemma.processes import how_ended, killed_by
from trilemma.units import count as whole

# Called with the position of a part and a message of its function.
Heard = Callable[[int, Any], None]
# Processes on a machine with few cores.
LEAST_PROCESSES = 16
# Modules that are imported once, before the processes are started from a copy of their process.
_PRELOADED = ["trilemma.evaluation.evaluate", "trilemma.evaluation.samples"]


def unheard(position: int, message: Any) -> None:
    """A :data:`Heard` that ignores the message."""


class Worker:
    """What a part's function gets: the classifier in its process.

    Attributes:
        clf: the classifier, on the device of the process.
        cache: values kept from part to part, by name.
        say: sends a message to the process that keeps the results.
    """

    def __init__(self, clf: Any, say: Callable[[Any], None]) -> None:
        self.clf, self.say = clf, say
        self.cache: dict[str, Any] = {}


class Workers:
    """Processes that call a function on parts; use it as a context manager.

    Args:
        clf: the classifier; it has to be picklable if there are several devices.
        devices: the device of each process; with fewer than two, the parts are computed in this process.

    Attributes:
        count: number of processes that compute.
    """

    def __init__(self, clf: Any, devices: Sequence[str] = ()) -> None:
        self.clf, self.devices = clf, list(devices)
        self.count = max(1, len(self.devices))
        self._own = Worker(clf, lambda message: None)
        self._processes: list[tuple[Connection, Any]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends the processes; the next :meth:`map` starts new ones."""
        for connection, process in self._processes:
            connection.close()
            process.kill()
            process.join()
        self._processes = []

    def map(
        self, function: Callable[..., Any], parts: Iterable[tuple[Any, ...]], heard: Heard = unheard
    ) -> Iterator[tuple[int, Any]]:
        """Yields the position and the result of each part as it is done, of one process in their order.

        Args:
            function: a function of a module, called as ``function(worker, *part)``.
            parts: its arguments; with several processes, arguments and results have to be picklable, tensors on the
                CPU.
            heard: called with the position and each message of a part.

        Raises:
            TrilemmaError: of a part; the others are dropped.
            ProcessLostError: a process has ended before its part was done.
            ConfigError: the classifier cannot be sent to other processes.
            RuntimeError: any other error of a part, with its traceback.
        """
        if self.count == 1:
            for position, part in enumerate(parts):
                self._own.say = lambda message, position=position: heard(position, message)  # type: ignore[misc]
                yield position, function(self._own, *part)
            return
        try:
            if not self._processes:
                self._start()
            yield from self._shared(function, parts, heard)
        except BaseException:
            # The other processes may still compute parts that nobody waits for.
            self.end()
            raise

    def _shared(
        self, function: Callable[..., Any], parts: Iterable[tuple[Any, ...]], heard: Heard
    ) -> Iterator[tuple[int, Any]]:
        """:meth:`map` with several processes, each of which gets the next part when it has finished one."""
        waiting = enumerate(parts)
        free = [connection for connection, _ in self._processes]
        running: dict[Connection, int] = {}
        while True:
            while free and (following := next(waiting, None)) is not None:
                position, part = following
                connection = free.pop(0)
                self._send(connection, (function, part))
                running[connection] = position
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                kind, content = self._receive(ready)
                if kind == "said":
                    heard(running[ready], content)
                    continue
                free.append(ready)
                yield running.pop(ready), content

    def _start(self) -> None:
        try:
            content = pickle.dumps(self.clf)
        # A network is the user's code, and may raise anything.
        except Exception as error:
            raise ConfigError(
                f"devices: this classifier cannot be sent to other processes ({describe(error)}); define its network "
                "in a module that can be imported, or leave devices out"
            ) from None
        methods = multiprocessing.get_all_start_methods()
        # A forked process would share locks of the threads of torch; a fork server has no such threads.
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(_PRELOADED)
        threads = max(1, torch.get_num_threads() // self.count)
        for number, device in enumerate(self.devices):
            own, other = context.Pipe()
            process = context.Process(
                target=_serve, args=(other, device, threads), daemon=True, name=f"worker {number} ({device})"
            )
            process.start()
            other.close()
            self._processes.append((own, process))
        for connection, _ in self._processes:
            self._send(connection, content)

    def _send(self, connection: Connection, content: Any) -> None:
        try:
            # Not by the connection, whose pickling moves tensors to shared memory, of which there may be little.
            connection.send_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        except OSError:
            raise self._lost(connection) from None

    def _receive(self, connection: Connection) -> tuple[str, Any]:
        try:
            kind, content = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            raise self._lost(connection) from None
        if kind == "error":
            raise content
        if kind == "crash":
            raise RuntimeError(f"{self._process(connection).name}: {content}")
        return kind, content

    def _process(self, connection: Connection) -> Any:
        return next(process for other, process in self._processes if other is connection)

    def _lost(self, connection: Connection) -> ProcessLostError:
        process = self._process(connection)
        process.join(5)
        how = how_ended(process.exitcode)
        if killed_by(process.exitcode) is None:
            how += "; its message is above"
        return ProcessLostError(
            f"{process.name}: {how}, before its work was done; use fewer devices, or try again"
        )


def most_processes() -> int:
    """The largest number of processes that are started on this machine."""
    return max(LEAST_PROCESSES, os.cpu_count() or 1)


def device_names(devices: int, device: torch.device, count: int, of: str) -> list[str]:
    """The device of each process: all of them the CPU, or one GPU each.

    Args:
        devices: number of processes.
        device: the device of the classifier.
        count: number of images.
        of: name of the images, for messages.

    Raises:
        ConfigError: not a whole number of at least 1, or more processes than images, GPUs, or :func:`most_processes`.
    """
    devices = whole("devices", "devices", devices)
    if devices > (most := most_processes()):
        raise ConfigError(
            f"devices: {devices} processes are more than the {most} that are started on this machine; lower it"
        )
    if devices > count:
        raise ConfigError(f"devices: {devices} processes for {count} {of}; use at most {count}")
    if device.type == "cpu" or devices == 1:
        return [str(device)] * devices
    gpus = torch.cuda.device_count()
    if devices > gpus or device.index not in (None, 0):
        available = f"this machine has {gpus}" if devices > gpus else f"{device} is one"
        raise ConfigError(
            f"devices: {devices} processes need as many GPUs, but {available}; use fewer devices, or device cuda or cpu"
        )
    return [f"{device.type}:{number}" for number in range(devices)]


def shared_out(index: Tensor, size: int, workers: int) -> list[Tensor]:
    """Parts of an index, of at most ``size``; for several workers as many equal parts as they can share.

    No part has a single image if there are others: matrix products of one row round differently.
    """
    if not len(index):
        return []
    if workers == 1:
        return list(index.split(size))
    rounds = -(-len(index) // (size * workers))
    least = -(-len(index) // size)
    return list(index.tensor_split(max(least, min(rounds * workers, len(index) // 2), 1)))


def _serve(connection: Connection, device: str, threads: int) -> None:
    """Calls functions on parts in a further process, until the first one closes the connection or has ended."""
    # Ctrl-C reaches the first process too, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)

    def send(kind: str, content: Any) -> None:
        # A pickled error without its traceback, whose frames hold the images.
        connection.send_bytes(pickle.dumps((kind, content)))

    with suppress(EOFError, OSError), freed_memory_kept(torch.device(device)):
        try:
            clf = pickle.loads(connection.recv_bytes()).to(device)
        except Exception as error:
            text = f"devices: the classifier cannot be opened in another process ({describe(error)})"
            send("error", ConfigError(f"{text}; define its network in a module that can be imported"))
            return
        worker = Worker(clf, lambda message: send("said", message))
        while True:
            function, part = pickle.loads(connection.recv_bytes())
            try:
                result = function(worker, *part)
            except TrilemmaError as error:
                send("error", error)
            except Exception:
                send("crash", traceback.format_exc())
            else:
                send("done", result)


def _follow(sentinel: int) -> None:
    """Ends this process when the one that started it has ended."""
    wait([sentinel])
    os._exit(1)
