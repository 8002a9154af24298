"""What happens if a file cannot be written: one error, nothing half-written, checks before the work."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trilemma.errors import NotStoredError, RunError, UserError
from trilemma.files import TensorFormat, replacing, write_npz, write_text
from trilemma.runs.run_directory import RunDirectory
from trilemma.storing import (
    collecting_unstored,
    discard,
    go_on_without,
    not_stored,
    temporary_folder,
    writable_file,
    writable_folder,
)

FORMAT = TensorFormat("test", 1, "foreign", "damaged", "remedy", "choose another disk", dict)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_the_error_names_the_file_the_reason_and_what_to_do():
    error = not_stored("runs/x/clean.json", FULL)
    assert str(error) == (
        "runs/x/clean.json: cannot be written (No space left on device); free disk space or choose another folder"
    )
    assert isinstance(error, UserError)
    other = pickle.loads(pickle.dumps(NotStoredError("a", "b", "c")))
    assert (str(other), other.path, other.reason) == ("a: cannot be written (b); c", "a", "b")


def test_the_error_names_the_folder_that_is_in_the_way(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(NotStoredError) as caught:
        write_text(tmp_path / "file" / "a" / "b.txt", "")
    assert caught.value.path == str(tmp_path / "file" / "a" / "b.txt")
    assert caught.value.reason == f"Not a directory: {tmp_path / 'file' / 'a'}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE])
@pytest.mark.parametrize("step", ["mkdir", "open", "fsync", "replace"])
def test_every_step_of_a_write_can_fail(tmp_path: Path, monkeypatch, number: int, step: str):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    old = tmp_path / "folder" / "old.txt"
    write_text(old, "whole")
    path = tmp_path / "new" / "a.txt" if step == "mkdir" else old

    def write() -> None:
        with replacing(path, sync=True) as temporary:
            temporary.write_text("half")

    with monkeypatch.context() as patch:
        patch.setattr(*{"open": (Path, "open")}.get(step, (os, step)), fail)
        with pytest.raises(NotStoredError) as caught:
            write()
    assert (caught.value.path, caught.value.reason) == (str(path), os.strerror(number))
    assert old.read_text() == "whole"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["old.txt"]


def test_an_error_of_another_file_is_not_blamed_on_the_one_that_is_written(tmp_path: Path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "copy") as temporary:
        temporary.write_bytes((tmp_path / "missing").read_bytes())
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_longest_name_is_written(tmp_path: Path):
    path = tmp_path / ("n" * 255)
    write_text(path, "text")
    assert path.read_text() == "text"


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_file_of_tensors_on_a_disk_that_runs_full(tiny_disk: Path, size: int):
    path = tiny_disk / "classifier.safetensors"
    FORMAT.write(path, {"a": torch.zeros(size)}, {}) if size == 100 else None
    (tiny_disk / "filler").write_bytes(bytes(8192))
    before = sorted(tiny_disk.iterdir())
    with pytest.raises(
        NotStoredError, match=r"cannot be written \(No space left on device\); choose another disk"
    ):
        FORMAT.write(path, {"a": torch.ones(10_000)}, {})
    assert sorted(tiny_disk.iterdir()) == before
    if size == 100:
        assert FORMAT.read(path)[1]["a"].sum() == 0
    with pytest.raises(NotStoredError, match="No space left"):
        write_npz(tiny_disk / "a.npz", {"a": torch.rand(10_000).numpy()})
    assert sorted(tiny_disk.iterdir()) == before


def long(count: int) -> dict[str, float]:
    """Terms of a metric line of about 20 bytes each."""
    return {f"term {index:07d}": 0.5 for index in range(count)}


def test_a_metric_line_that_does_not_fit_leaves_no_part_of_it(tiny_disk: Path):
    run = RunDirectory(tiny_disk)
    run.add_metrics({"step": 1, "epoch": 1, "kind": "step", "terms": long(100)})
    (tiny_disk / "filler").write_bytes(bytes(8192))
    with pytest.raises(
        NotStoredError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"
    ):
        run.add_metrics({"step": 2, "epoch": 2, "kind": "step", "terms": long(700)})
    assert run.metrics_file.read_text().count("\n") == 1
    (tiny_disk / "filler").unlink()
    run.add_metrics({"step": 2, "epoch": 2, "kind": "step"})
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_a_full_disk_is_found_before_the_work(tiny_disk: Path):
    writable_folder(tiny_disk / "new")
    assert list(tiny_disk.iterdir()) == []
    (tiny_disk / "filler").write_bytes(bytes(16384))
    for check in (writable_folder, writable_file):
        with pytest.raises(
            NotStoredError, match=r"new: cannot be written \(No space left on device\); choose another"
        ):
            check(tiny_disk / "new")
    assert [file.name for file in tiny_disk.iterdir()] == ["filler"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_found_before_the_work(tmp_path: Path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(NotStoredError, match="Permission denied"):
            writable_folder(tmp_path / "new")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("name", ["file", "file/x", "file/x/y", "n" * 300, f"{'n' * 300}/x"])
def test_a_path_that_cannot_be_is_the_users_mistake(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot create the folder"):
        writable_folder(tmp_path / name)
    if name != "file":
        with pytest.raises(RunError, match=r"cannot create the folder|cannot be a file"):
            writable_file(tmp_path / name)
    with pytest.raises(RunError, match="is a folder, not a file"):
        writable_file(tmp_path)


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="no devices")
def test_a_device_is_never_replaced_by_a_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(RunError, match="is a device or a pipe, not a file; choose another --out"):
            writable_file(path)
    # As a user who may write there would; the check comes before the folder is written to.
    with pytest.raises(NotStoredError, match="a device"):
        write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()


def test_what_is_not_needed_is_removed_if_it_can_be(tmp_path: Path, monkeypatch):
    (tmp_path / "a").touch()
    discard(tmp_path / "a")
    discard(tmp_path / "a")
    assert not (tmp_path / "a").exists()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    discard(tmp_path / "a")


def test_results_that_are_not_stored_are_warnings_or_collected(capsys):
    error = not_stored("a.json", FULL)
    go_on_without(error)
    assert capsys.readouterr().err == (
        "warning: a.json: cannot be written (No space left on device); the result is shown but not stored\n"
    )
    with collecting_unstored() as errors:
        go_on_without(error)
    assert errors == [error]
    assert capsys.readouterr().err == ""


def test_temporary_files_that_cannot_be_written_are_one_line(monkeypatch):
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(NotStoredError, match=r"temporary files: cannot be written \(No usable .* set TMPDIR"):
        temporary_folder()
