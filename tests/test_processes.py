"""Jobs in several processes: messages, errors and interruptions come back, and nothing runs on afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from trilemma.errors import ConfigError
from trilemma.processes import Job, Say, run_jobs


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

    def ended(name: str, error: BaseException | None) -> None:
        if error is not None:
            raise error
        said(name, "end")

    run_jobs(work, workers, said, ended, lambda: None)
    return heard


@pytest.mark.parametrize("workers", [0, 2])
def test_every_job_is_done_and_heard(tmp_path, workers):
    heard = run(jobs(tmp_path, a=greet, b=greet, c=greet), workers)
    assert sorted(heard) == sorted((n, text) for n in "abc" for text in (f"hello from {n}", "end"))
    pids = {(tmp_path / name).read_text() for name in "abc"}
    assert pids == {str(os.getpid())} if workers == 0 else str(os.getpid()) not in pids and len(pids) == 3


def test_an_error_comes_back_and_interrupts_the_others(tmp_path):
    with pytest.raises(ConfigError, match="b: a mistake"):
        run([*jobs(tmp_path, a=sleep), Job("b", fail_after, (tmp_path, "b"))])
    assert (tmp_path / "a.saved").exists()


def fail_after(say: Say, folder: Path, name: str) -> None:
    while not (folder / "a.began").exists():
        time.sleep(0.01)
    fail(say, folder, name)


def kill(say: Say, folder: Path, name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def threads(say: Say, folder: Path, name: str) -> None:
    say(os.environ["OMP_NUM_THREADS"])
    print("to the log")


def test_a_job_that_fails_leaves_the_others_alone_if_its_error_is_not_raised(tmp_path, monkeypatch, capfd):
    """Each way to fail has its words, output goes to the log, and threads are those of the job."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    heard: dict[str, str] = {}
    ends: dict[str, BaseException | None] = {}
    work = jobs(tmp_path, a=crash, b=fail, c=kill)
    work.append(Job("d", threads, (tmp_path, "d"), log=tmp_path / "d.log", threads=3))
    run_jobs(work, 4, heard.__setitem__, ends.__setitem__, lambda: None)
    assert {name: str(error) for name, error in ends.items()} == {
        "a": "a: its process ended before its work was done (exit code 1)",
        "b": "b: a mistake",
        "c": "c: its process ended before its work was done (killed by SIGKILL)",
        "d": "None",
    }
    assert isinstance(ends["b"], ConfigError)
    assert (heard, (tmp_path / "d.log").read_text()) == ({"d": "3"}, "to the log\n")
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


def start_and_wait(folder: Path) -> None:
    run(jobs(folder, a=sleep))


def test_the_processes_of_a_killed_process_are_interrupted(tmp_path):
    """What a process was started for cannot go on unseen, and keep its run locked."""
    first = multiprocessing.get_context("spawn").Process(target=start_and_wait, args=(tmp_path,))
    first.start()
    while not (tmp_path / "a.began").exists():
        time.sleep(0.01)
    first.kill()
    first.join()
    deadline = time.monotonic() + 10
    while not (tmp_path / "a.saved").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "a.saved").exists()


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
