"""Jobs in several processes: messages, errors and interruptions come back, and nothing runs on afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from trilemma.cli.workers import Job, Say, run_jobs
from trilemma.errors import ConfigError


def greet(say: Say, folder: Path, name: str) -> None:
    say(f"hello from {name}")
    (folder / name).write_text(str(os.getpid()))


def fail(say: Say, folder: Path, name: str) -> None:
    raise ConfigError(f"{name}: a mistake")


def crash(say: Say, folder: Path, name: str) -> None:
    raise ZeroDivisionError("a bug")


def sleep(say: Say, folder: Path, name: str) -> None:
    """Works until it is interrupted, and then saves what it has."""
    (folder / f"{name}.began").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / f"{name}.saved").touch()
        raise


def jobs(folder: Path, **functions) -> list[Job]:
    return [Job(name, function, (folder, name)) for name, function in functions.items()]


def run(work: list[Job], workers: int = 2) -> list[tuple[str, str]]:
    heard: list[tuple[str, str]] = []

    def said(name: str, text: str) -> None:
        heard.append((name, text))

    run_jobs(work, workers, said, lambda name: said(name, "end"), lambda: None)
    return heard


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_and_heard(tmp_path, workers):
    heard = run(jobs(tmp_path, a=greet, b=greet, c=greet), workers)
    assert sorted(heard) == sorted((n, text) for n in "abc" for text in (f"hello from {n}", "end"))
    pids = {(tmp_path / name).read_text() for name in "abc"}
    assert pids == {str(os.getpid())} if workers == 1 else str(os.getpid()) not in pids and len(pids) == 3


def test_an_error_comes_back_and_interrupts_the_others(tmp_path):
    with pytest.raises(ConfigError, match="b: a mistake"):
        run([*jobs(tmp_path, a=sleep), Job("b", fail_after, (tmp_path, "b"))])
    assert (tmp_path / "a.saved").exists()


def fail_after(say: Say, folder: Path, name: str) -> None:
    while not (folder / "a.began").exists():
        time.sleep(0.01)
    fail(say, folder, name)


def test_a_process_that_crashes_is_named(tmp_path, capfd):
    with pytest.raises(RuntimeError, match="a: its process ended before its work was done"):
        run(jobs(tmp_path, a=crash))
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


def test_sigterm_reaches_every_process_once(tmp_path):
    def later() -> None:
        while len(list(tmp_path.glob("*.began"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=later).start()
    with pytest.raises(KeyboardInterrupt):
        run(jobs(tmp_path, a=sleep, b=sleep, c=greet))
    assert sorted(file.name for file in tmp_path.glob("*.saved")) == ["a.saved", "b.saved"]
    assert not (tmp_path / "c").exists()
