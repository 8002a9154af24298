"""Runs a case in a forked child of this process, which has imported torch once: milliseconds instead of seconds."""

from __future__ import annotations

import gc
import importlib
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.fault_suite.case import LONGEST_SECONDS, Case, Ended, judged

# Address space of a child above that of its parent: a bomb ends there, and not with the machine.
_MOST_BYTES = 6 << 30
_POLL_SECONDS = 0.005
# Of a text in a row.
_LONGEST_TEXT = 400
# A child that was not able to try its case.
_NOT_TRIED = 77


def outcome(case: Case, folder: Path) -> dict[str, Any]:
    """Runs a case in an empty folder, and returns its row: verdict, reason and cost, or why it was not tried."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        case.prepare(folder)
        ended = run(case.action, folder, case.surroundings, case.timeout)
        if isinstance(ended, str):
            return {"name": case.name, "not tried": ended}
        verdict, reason = judged(case, ended)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    row = {"name": case.name, "verdict": str(verdict)}
    lines = [ended.error, *reversed(ended.stderr.splitlines())]
    texts = {"reason": reason, "line": next((line for line in lines if line.strip()), "")}
    row |= {key: without_paths(text, folder)[:_LONGEST_TEXT] for key, text in texts.items() if text}
    return row | {"seconds": round(ended.seconds, 2), "megabytes": round(ended.megabytes)}


def without_paths(text: str, folder: Path) -> str:
    """Text without the names of this machine's folders."""
    text = text.replace(str(folder), "FOLDER").replace(str(folder.parent.parent), "WORK")
    text = text.replace(tempfile.gettempdir(), "TMP").replace(sys.prefix, "PYTHON")
    return re.sub(r'File "[^"]*/(?=[^/"]+")', 'File "', text)


def run(
    action: tuple[str, ...] | Callable[[], Any],
    folder: Path,
    surroundings: Callable[[], str | None] = lambda: None,
    timeout: float = LONGEST_SECONDS,
) -> Ended | str:
    """Runs a command or a function in a folder; the text says why it could not be tried."""
    before = set(_files(folder))
    with tempfile.TemporaryDirectory() as outside:
        streams = [Path(outside, name) for name in ("stdout", "stderr", "plain")]
        pid = _fork(lambda: _child(action, folder, streams, surroundings))
        status, usage, timed_out = _wait(pid, timeout)
        stdout, stderr, plain = (
            stream.read_text(errors="replace") if stream.exists() else "" for stream in streams
        )
    code = os.waitstatus_to_exitcode(status)
    if code == _NOT_TRIED:
        return stderr.strip()
    left = tuple(name for name in _files(folder) if name not in before)
    seconds = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    megabytes = max(0.0, peak - float(plain or peak))
    return Ended(folder, code, stdout, stderr, seconds, megabytes, timed_out, left)


def _fork(child: Callable[[], NoReturn]) -> int:
    sys.stdout.flush(), sys.stderr.flush()
    with warnings.catch_warnings():
        # Python warns of threads; those of torch do not exist yet.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if not pid:
        child()
    return pid


def _wait(pid: int, timeout: float) -> tuple[int, resource.struct_rusage, bool]:
    """Waits for a child, and kills it and its children after ``timeout`` seconds."""
    timed_out = not _ends(pid, timeout)
    if timed_out:
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage, timed_out


def _ends(pid: int, timeout: float) -> bool:
    """Whether a child ends in time; it is not reaped."""
    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(pid)
        try:
            return bool(select.select([descriptor], [], [], timeout)[0])
        finally:
            os.close(descriptor)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _child(
    action: tuple[str, ...] | Callable[[], Any],
    folder: Path,
    streams: list[Path],
    surroundings: Callable[[], str | None],
) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        streams[2].write_text(str(_resident_megabytes()))
        _redirect(streams[:2])
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        _limit_memory()
        reason = surroundings()
        if reason:
            print(reason, file=sys.stderr, flush=True)
            os._exit(_NOT_TRIED)
        code = exit_code(action)
        sys.stdout.flush(), sys.stderr.flush()
    # Whatever it is, it must not go on in the code of the parent.
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def exit_code(action: tuple[str, ...] | Callable[[], Any]) -> int:
    """The exit code of a command, or of a function as the command line would have it."""
    from trilemma.cli.main import main
    from trilemma.errors import UserError

    try:
        if callable(action):
            action()
        else:
            sys.argv = ["trilemma", *action]
            main()
    except UserError as error:
        print(f"trilemma: error: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _redirect(streams: list[Path]) -> None:
    for number, stream in enumerate(streams, 1):
        file = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _limit_memory() -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    most = pages * resource.getpagesize() + _MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _resident_megabytes() -> float:
    """Memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        # An upper bound where the system does not say it.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return pages * resource.getpagesize() / 2**20


def _files(folder: Path) -> list[str]:
    """Paths of all files of a folder, relative to it; links are not followed."""
    return sorted(
        str((Path(root) / name).relative_to(folder)) for root, _, names in os.walk(folder) for name in names
    )


def import_all() -> None:
    """Imports what the commands import late, so that no case pays for it."""
    import torch

    # Threads do not survive a fork.
    torch.set_num_threads(1)
    for name in LATE:
        importlib.import_module(name)
    # A collection in a child would copy the memory of these objects.
    gc.collect()
    gc.freeze()


LATE = (
    "lightning_fabric", "matplotlib.pyplot", "numpy", "PIL.Image", "pydantic", "rich.table", "safetensors.torch",
    "scipy.linalg", "torchmetrics", "trilemma.cli.main", "trilemma.evaluation.diagnose",
    "trilemma.evaluation.evaluate", "trilemma.evaluation.export", "trilemma.evaluation.samples",
    "trilemma.evaluation.predict", "trilemma.evaluation.score", "trilemma.pages.compare", "trilemma.pages.page",
    "trilemma.training.train",
)  # fmt: skip
