"""Commands on a disk that is full or read-only: the result is printed, exit code 4, nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from trilemma.cli.exits import _Tolerant
from trilemma.errors import NotStoredError
from trilemma.processes import Job, _work
from trilemma.runs.run_directory import RunDirectory
from trilemma.storing import go_on_without, not_stored
from trilemma.training.checkpoint import load_state

WRITING = set("wax+")
Break = Callable[..., None]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Break:
    """``disk(folder, number)``: from now on, no file in that folder can be opened for writing, created or replaced.

    With ``late``, files can be opened and written, but not be given their final names.
    """
    real_open, real_replace, real_mkdir, real_unlink = io.open, os.replace, os.mkdir, os.unlink

    def break_disk(folder: Path, number: int = errno.ENOSPC, late: bool = False) -> None:
        def refuse(path: Any) -> None:
            if isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(
                folder.absolute()
            ):
                raise OSError(number, os.strerror(number), os.fspath(path))

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if WRITING & set(mode):
                refuse(file)
            return real_open(file, mode, *arguments, **options)

        def replaced(source: Any, target: Any) -> None:
            refuse(target)
            real_replace(source, target)

        def made(path: Any, *arguments: Any, **options: Any) -> None:
            if not Path(path).exists():
                refuse(path)
            real_mkdir(path, *arguments, **options)

        def removed(path: Any, *arguments: Any, **options: Any) -> None:
            refuse(path)
            real_unlink(path, *arguments, **options)

        monkeypatch.setattr(os, "replace", replaced)
        if not late:
            monkeypatch.setattr(io, "open", opened)
            monkeypatch.setattr(os, "mkdir", made)
            monkeypatch.setattr(os, "unlink", removed)

    return break_disk


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path to content of every file, except for the empty one of the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def last_line(result: Any, code: int = 4) -> str:
    """The one line of a command that has not stored its result."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("trilemma: error: ")]
    assert result.exit_code == code, result.output
    assert len(errors) == 1
    assert errors == result.stderr.splitlines()[-1:]
    return str(errors[0].removeprefix("trilemma: error: "))


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_run_that_cannot_be_written_is_evaluated_and_its_rows_printed(trilemma, run_folder, disk, number):
    before = contents(run_folder)
    disk(run_folder, number)
    result = trilemma("evaluate", run_folder, "--images", 5, "--protocol", "clean", "--no-lint", "--json")
    reason = os.strerror(number)
    assert last_line(result) == (
        f"{run_folder}/evaluation/clean.json: cannot be written ({reason}); the result is shown but not stored; "
        "free disk space or choose another folder"
    )
    assert (
        f"note: {run_folder}: cannot be written ({reason}); the rows are printed and not stored"
        in result.stderr
    )
    assert json.loads(result.stdout)["clean"]["count"] == 5
    assert contents(run_folder) == before


def test_rows_of_several_protocols_are_one_line(trilemma, run_folder, disk):
    before = contents(run_folder)
    disk(run_folder, late=True)
    result = trilemma("evaluate", run_folder, "--images", 5, "--no-lint", "--json", "--quiet")
    assert "clean.json (nor 1 more): cannot be written" in last_line(result)
    assert list(json.loads(result.stdout)) == ["clean", "pgd-20"]
    assert contents(run_folder) == before


def test_a_row_that_is_replaced_stays_if_the_new_one_cannot_be_written(trilemma, run_folder, disk):
    command = ("evaluate", run_folder, "--protocol", "clean", "--no-lint", "--quiet", "--images")
    trilemma(*command, 5)
    before = contents(run_folder)
    disk(run_folder, late=True)
    result = trilemma(*command, 9)
    last_line(result)
    assert "replaces" not in result.stderr
    assert "clean" in result.stdout
    assert {name.split("/")[-1] for name in contents(run_folder).keys() - before.keys()} <= {"clean-1.json"}


# Commands that write where they are told, with what they print although they cannot store it.
IMAGE = "four.png"
COMMANDS: dict[str, tuple[list[Any], str]] = {
    "generate": (["--per-class", 1, "--steps", 1, "--out", "disk/out", "--quiet"], "distance to nearest"),
    "counterfactual": ([IMAGE, "--target", 9, "--steps", 2, "--budget", 1, "--out", "disk/out", "--quiet"], "distance"),
    "diagnose": (["--images", 20, "--attack", "pgd", "--out", "disk/out", "--quiet"], "mean E(x)"),
    "compare": (["--out", "disk/table.csv"], "clean"),
    "monitor": (["--figure", "disk/curves.png"], "best epoch"),
    "export": (["--state-dict", "--out", "disk/model.pt", "--quiet"], ""),
    "push": (["owner/name", "--out", "disk/new"], ""),
    "report": (["--out", "disk/page.html"], ""),
}  # fmt: skip
# They copy what is stored elsewhere: nothing is lost, and the file that was named is the mistake.
ONLY_COPIES = {"export", "push"}


def code_of(command: str) -> int:
    return 2 if command in ONLY_COPIES else 4


@pytest.fixture
def places(tmp_path: Path, run_folder: Path) -> Path:
    (tmp_path / "disk").mkdir()
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / IMAGE)
    row = {"kind": "epoch", "held_out_clean": 0.5, "held_out_pgd10": 0.25, "minutes": 0.0}
    for epoch in range(2, 6):
        RunDirectory(run_folder).add_metrics({**row, "step": epoch, "epoch": epoch, "selected": False})
    return tmp_path / "disk"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_needs_to_write_says_so_before_it_computes(
    trilemma, run_folder, places, disk, command
):
    disk(places, errno.EROFS)
    result = trilemma(command, run_folder, *COMMANDS[command][0])
    assert last_line(result, code_of(command)).startswith("disk")
    assert "cannot be written (Read-only file system" in result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert contents(places) == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_computed_is_printed_if_the_disk_runs_full_meanwhile(
    trilemma, run_folder, places, disk, command
):
    if command == "compare":
        trilemma("evaluate", run_folder, "--images", 5, "--protocol", "clean", "--no-lint", "--quiet")
    disk(places, late=True)
    arguments, printed = COMMANDS[command]
    result = trilemma(command, run_folder, *arguments)
    assert last_line(result, code_of(command)).startswith("disk")
    assert "cannot be written (No space left on device)" in result.stderr
    assert printed in result.stdout
    # Nothing is said to be where it is not.
    assert "disk" not in result.stdout
    assert contents(places) == {}


def test_samples_are_measured_although_they_cannot_be_stored(trilemma, run_folder, places, disk, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr("trilemma.cli.generate.independent_extractor", lambda *_: "extractor")
    monkeypatch.setattr("trilemma.cli.generate.sample_row", lambda run, samples, *_: seen.append(samples))
    command = (
        "generate",
        run_folder,
        "--per-class",
        1,
        "--steps",
        1,
        "--extractor",
        "any",
        "--quiet",
        "--out",
    )
    assert trilemma(*command, "disk/a").exit_code == 0
    disk(places, late=True)
    last_line(trilemma(*command, places / "b"))
    stored, lost = seen
    assert torch.equal(stored.images, lost.images)
    assert stored.images.dtype == torch.uint8
    assert (stored.origin, len(stored.starts)) == ("fresh", 10)


def test_adversarial_images_that_cannot_be_stored_do_not_cost_the_row(trilemma, run_folder, places, disk):
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    command = (
        "evaluate",
        file,
        "--data",
        "digits",
        "--images",
        5,
        "--protocol",
        "pgd-20",
        "--no-lint",
        "--json",
    )
    disk(places, late=True)
    result = trilemma(*command, "--save-adversarial", places / "a.npz", "--quiet")
    assert last_line(result).startswith(f"{places}/a.npz: cannot be written")
    assert json.loads(result.stdout)["pgd-20"]["count"] == 5
    disk(places, errno.EROFS)
    for option in ("--save-adversarial", "--out"):
        early = trilemma(*command, option, places / "b.npz")
        assert "b.npz: cannot be written (Read-only file system)" in last_line(early)
        assert early.stdout == ""
    assert contents(places) == {}


def test_a_recipe_that_cannot_be_stored(trilemma, places, disk):
    for name in ("cat", "dog"):
        for index in range(6):
            (places.parent / "photos" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 3), 40 * index + len(name), np.uint8)
            Image.fromarray(pixels).save(places.parent / "photos" / name / f"{index}.png")
    disk(places, late=True)
    result = trilemma("init", "photos", "--out", "disk/a.yaml")
    assert last_line(result).startswith("disk/a.yaml: cannot be written")
    assert "12 images in 2 classes" in result.stdout
    assert contents(places) == {}


TRAINING = {"training.epochs": 2, "network.width": 4, "training.evaluate_every": 1}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path = tmp_path_factory.mktemp("whole") / "run"
    trilemma.train("digits/standard", TRAINING, out=path, progress=False)
    return RunDirectory(path)


@pytest.mark.parametrize("lost", ["state.safetensors", "classifier.safetensors", "metrics.jsonl"])
def test_a_training_on_a_full_disk_keeps_its_last_state_and_resumes(
    trilemma, whole_run, tmp_path, monkeypatch, lost
):
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        fail_at(patch, lost, 2)
        result = trilemma("train", "digits/standard", *overrides(), "--out", run.path, "--quiet")
    line = last_line(result)
    assert line.startswith(str(run.path))
    assert line.endswith(
        "cannot be written (No space left on device); free disk space, then continue the run with --resume "
        "(in Python resume=True)"
    )
    assert load_state(run.state_file)["position"]["step"] >= 0
    assert run.status()["status"] == "interrupted"
    assert weights(run.best_classifier)
    assert [path.name for path in run.path.rglob("*.tmp")] == []
    assert trilemma("train", run.path, "--resume", "--quiet").exit_code == 0
    expected = weights(whole_run.last_classifier)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run.last_classifier).items())
    assert [(row["kind"], row["step"]) for row in run.metrics()] == [
        (row["kind"], row["step"]) for row in whole_run.metrics()
    ]


def overrides() -> list[str]:
    return [f"{key}={value}" for key, value in TRAINING.items()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return trilemma.load(path).state_dict()


def fail_at(patch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """The disk is full when a file of this name is written for the ``count``-th time."""
    real_replace, real_append = os.replace, RunDirectory.add_metrics
    calls = []

    def full(target: Any) -> None:
        calls.append(target)
        if len(calls) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def replaced(source: Any, target: Any) -> None:
        if Path(target).name == name:
            full(target)
        real_replace(source, target)

    def appended(run: RunDirectory, record: dict[str, Any]) -> None:
        if name == run.metrics_file.name:
            try:
                full(run.metrics_file)
            except OSError as error:
                raise not_stored(run.metrics_file, error) from None
        real_append(run, record)

    patch.setattr(os, "replace", replaced)
    patch.setattr(RunDirectory, "add_metrics", appended)


@pytest.mark.parametrize("file", ["config.yaml", "environment.json"])
def test_a_run_that_cannot_be_created_leaves_the_folder_unused(trilemma, places, monkeypatch, file):
    with monkeypatch.context() as patch:
        fail_at(patch, file, 1)
        result = trilemma("train", "digits/standard", *overrides(), "--out", "disk/new", "--quiet")
    assert last_line(result) == "disk/new: cannot be written (No space left on device); choose another --out"
    assert contents(places) == {}
    RunDirectory.check_unused("disk/new")


def lose(say: Any, path: str) -> None:
    go_on_without(not_stored(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))


def test_a_process_of_the_quickstart_that_cannot_store_sends_the_error(monkeypatch):
    monkeypatch.delattr(os, "setpgrp", raising=False)
    receiver, sender = Pipe(duplex=False)
    _work(sender, Job("a", lose, ("a.json",)))
    error = receiver.recv()
    assert isinstance(error, NotStoredError)
    assert str(error).startswith("a.json: cannot be written")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_log_of_progress_does_not_end_a_command():
    with suppress(OSError), open("/dev/full", "w", buffering=1) as full:
        stream: Any = _Tolerant(full)
        print("progress", file=stream, flush=True)
        assert stream.fileno() == full.fileno()
        with pytest.raises(OSError, match="No space left"):
            print("progress", file=full, flush=True)


def test_images_are_decoded_into_memory_if_the_cache_is_full(trilemma, tmp_path, disk, monkeypatch):
    for name in ("cat", "dog"):
        for index in range(6):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 3), 40 * index + len(name), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    disk(tmp_path / "cache")
    data = (
        "digits/standard",
        "data.name=folder",
        "data.root=photos",
        "training.batch_size=4",
        "training.epochs=1",
    )
    refused = trilemma("validate", *data)
    assert refused.exit_code == 2
    assert f"the decode cache {tmp_path}/cache: cannot be written (No space left on device" in refused.stderr
    trained = trilemma("train", *data, "network.width=4", "--out", "run", "--quiet")
    assert trained.exit_code == 0, trained.output
    assert trained.stderr.count("decoded into memory") == 1
