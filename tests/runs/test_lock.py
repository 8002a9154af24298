"""One process writes to a run folder at a time; readers are not blocked, and a dead process holds no lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trilemma.config.recipe import load_config
from trilemma.errors import RunError
from trilemma.evaluation.diagnose import diagnose
from trilemma.evaluation.evaluate import evaluate, evaluate_into
from trilemma.evaluation.samples import generate
from trilemma.pages.html import write_report
from trilemma.runs.lock import writing, writing_inside
from trilemma.runs.read import read_contents
from trilemma.runs.run_directory import LOCK_FILE, RunDirectory
from trilemma.training.train import train

HOLDER = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print(1, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(run_copy: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that writes to ``run_copy``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, run_copy / LOCK_FILE], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def writers(run: Path) -> dict[str, Callable[[], Any]]:
    config = load_config(str(run / "config.yaml"))
    return {
        "train": lambda: train(config, out=run, resume=True, progress=False),
        "evaluate": lambda: evaluate(run, protocols=["clean"], images=5),
        "generate": lambda: generate(run, per_class=1, steps=1),
        "diagnose": lambda: diagnose(run, images=5, attacks=["pgd"]),
    }


def test_the_second_writer_is_one_line_readers_go_on_and_a_killed_process_holds_nothing(
    run_copy: Path, other_process: subprocess.Popen[bytes]
) -> None:
    run = RunDirectory(run_copy)
    run.write_status(**{**run.status(), "status": "interrupted"})
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    for write in writers(run_copy).values():
        with pytest.raises(RunError) as caught:
            write()
        assert str(caught.value).startswith(
            f"{run_copy}: another process is writing to this folder; wait until"
        )
    assert before == {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert read_contents(run_copy).status["status"] == "interrupted"
    assert write_report(run_copy).is_file()
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert evaluate(run_copy, protocols=["clean"], images=5)["clean"]["count"] == 5


def test_a_finished_run_is_returned_while_another_process_writes(
    run_copy: Path, other_process: subprocess.Popen[bytes]
) -> None:
    config = load_config(str(run_copy / "config.yaml"))
    assert train(config, out=run_copy, resume=True, progress=False).path == run_copy


def test_a_folder_of_rows_is_locked_too_and_the_lock_of_one_thread_may_be_nested(
    tmp_path: Path, run_copy: Path, toy: Any
) -> None:
    refused: list[BaseException] = []

    def write() -> None:
        try:
            evaluate_into(tmp_path / "rows", toy.mlp(), toy.image_set(), ["clean"], lint=False)
        except RunError as error:
            refused.append(error)

    with (
        writing(tmp_path / "rows"),
        writing(tmp_path / "rows"),
        writing_inside(run_copy / "samples" / "name"),
    ):
        assert (run_copy / LOCK_FILE).is_file()
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(refused) == 1
    write()
    assert len(refused) == 1 and (tmp_path / "rows" / "evaluation" / "clean.json").is_file()
    with writing_inside(tmp_path / "elsewhere"), writing_inside(None):
        assert not (tmp_path / "elsewhere").exists()


def test_a_read_only_folder_needs_no_lock(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with writing(run_copy):
        assert not (run_copy / LOCK_FILE).exists()


def test_a_folder_with_the_lock_alone_is_empty(tmp_path: Path) -> None:
    with writing(tmp_path / "new"):
        RunDirectory.create(tmp_path / "new", load_config("digits/standard"))
    assert RunDirectory.open(tmp_path / "new").config_file.is_file()


def test_a_writer_removes_the_temporary_files_of_killed_processes_alone(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "evaluation").mkdir()
    of_killed = [
        tmp_path / f".status.json.{ended.pid}.tmp",
        tmp_path / "evaluation" / f".x.json.{ended.pid}.tmp",
    ]
    others = [tmp_path / f".status.json.{os.getpid()}.tmp", tmp_path / ".notes.tmp", tmp_path / "a.1.tmp"]
    for path in (*of_killed, *others):
        path.touch()
    with writing(tmp_path), writing(tmp_path):
        assert not any(path.exists() for path in of_killed)
        assert all(path.exists() for path in others)


def test_a_writer_with_patience_waits_for_the_other_one(
    run_copy: Path, other_process: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(RunError), writing(run_copy, patience=0.1):
        pass
    threading.Timer(0.3, other_process.kill).start()
    with writing(run_copy, patience=60):
        assert other_process.wait() == -signal.SIGKILL
