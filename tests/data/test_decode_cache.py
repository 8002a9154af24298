"""The decode cache: memory-mapped, rebuilt when damaged, never half written."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest

from trilemma.data.cache import Contents, cache_folder, cache_required, cached
from trilemma.errors import DataError, NotStoredError
from trilemma.files import reserve

PIXELS = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)


class Source:
    """Counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> Contents:
        self.reads += 1
        return Contents(
            (3, 4, 4), np.array([0, 1]), {"test": (0, 2)}, ("a", "b"), "f" * 64, (4, 4), self.fill
        )

    def fill(self, out: np.ndarray) -> None:
        out[:] = PIXELS


def test_second_reading_comes_from_the_file() -> None:
    source = Source()
    for _ in range(2):
        entry = cached("key", source)
        assert isinstance(entry.images, np.memmap)
        assert np.array_equal(entry.images, PIXELS)
        assert (entry.labels.tolist(), entry.parts, entry.class_names) == (
            [0, 1],
            {"test": (0, 2)},
            ("a", "b"),
        )
    assert source.reads == 1
    entry.images[:] = 0  # must never reach the file
    assert np.array_equal(cached("key", source).images, PIXELS)


@pytest.mark.parametrize("name", ["key.npy", "key.labels.npy", "key.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "garbage", "empty"])
def test_damaged_entries_are_built_again(name: str, damage: str) -> None:
    source = Source()
    cached("key", source)
    file = cache_folder() / "decoded" / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": data[:-3], "garbage": b"\x93" * len(data), "empty": b""}[damage])
    assert np.array_equal(cached("key", source).images, PIXELS)
    assert source.reads == 2


@pytest.mark.parametrize("name", ["key.npy", "key.labels.npy", "key.json"])
def test_an_entry_with_a_flipped_bit_is_built_again_or_reads_the_same(name: str) -> None:
    source = Source()
    cached("key", source)
    file = cache_folder() / "decoded" / name
    whole = file.read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        entry = cached("key", source)
        assert np.array_equal(entry.images, PIXELS) and entry.labels.tolist() == [0, 1]
        assert (entry.parts, entry.class_names, entry.native) == ({"test": (0, 2)}, ("a", "b"), (4, 4))
        file.write_bytes(whole)
    assert source.reads > len(whole) / 6


def test_a_failed_build_leaves_nothing() -> None:
    def broken() -> Contents:
        source = Source()
        contents = source()

        def fill(out: np.ndarray) -> None:
            raise DataError("bad image")

        return Contents(**{**contents.__dict__, "fill": fill})

    with pytest.raises(DataError, match="bad image"):
        cached("key", broken)
    assert list((cache_folder() / "decoded").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "file"))
    entry = cached("key", Source())
    assert np.array_equal(entry.images, PIXELS)
    assert entry.labels.tolist() == [0, 1]
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"warning: the decode cache .*file: cannot be written .* set TRILEMMA_CACHE .* decoded into memory .*\n",
        line,
    )
    with cache_required(), pytest.raises(NotStoredError, match="cannot be written"):
        cached("key", Source())


def test_images_that_do_not_fit_into_memory_need_the_cache(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("trilemma.data.cache._MEMORY_BYTES", 10)
    with pytest.raises(NotStoredError, match="set TRILEMMA_CACHE"):
        cached("key", Source())


def test_a_full_disk_is_no_entry_and_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        cache_required(),
        pytest.raises(NotStoredError, match=r"written \(No space left on device\); free some"),
    ):
        cached("key", Source())
    assert list((cache_folder() / "decoded").iterdir()) == []


@pytest.mark.parametrize("fallocate", ["as it is", "not supported", "missing"])
def test_reserved_space_is_allocated_and_reads_as_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallocate: str
) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if fallocate == "not supported":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    if fallocate == "missing":
        monkeypatch.delattr(os, "posix_fallocate")
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"head")
        file.truncate(5 << 20)
    reserve(path)
    status = path.stat()
    assert (status.st_size, status.st_blocks * 512 >= status.st_size) == (5 << 20, True)
    assert path.read_bytes() == b"head" + bytes((5 << 20) - 4)


def test_cache_folder_follows_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRILEMMA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trilemma"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "trilemma"
