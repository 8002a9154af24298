"""The decode cache: memory-mapped, rebuilt when damaged, never half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trilemma.data.cache import Contents, cache_folder, cached
from trilemma.errors import DataError

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


def test_cache_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"decode cache cannot be written .* set TRILEMMA_CACHE"):
        cached("key", Source())


def test_cache_folder_follows_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRILEMMA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trilemma"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "trilemma"
