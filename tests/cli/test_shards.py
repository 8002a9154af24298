"""``trilemma shards``: what it writes and counts, and what a run on shards says that cannot begin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.data.conftest import Build

pytest.importorskip("webdataset", reason="needs the extra stream")


@pytest.fixture
def folder(tmp_path: Path, trilemma: Command) -> Path:
    """Shards of 16 training and 4 test images of 2 classes, 10 images in each shard."""
    Build.folder(tmp_path / "photos", {**Build.classes("train", 8), **Build.classes("test", 2, 60)})
    result = trilemma("shards", "photos", "--out", "shards", "--per-shard", 10)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "shards: 16 train, 4 test images in 2 classes and 3 shards, most often 4x4 pixels",
        "next: trilemma train RECIPE data.name=shards data.root=shards",
    ]
    return tmp_path / "shards"


def test_counting_shards_again_writes_the_same_index(folder: Path, trilemma: Command) -> None:
    before = (folder / "shards.json").read_text()
    (folder / "shards.json").unlink()
    # The class names were in the index alone.
    (folder / "classnames.txt").write_text("cat\ndog\n")
    assert trilemma("shards", "shards").exit_code == 0
    assert (folder / "shards.json").read_text() == before


def test_a_recipe_is_checked_against_the_shards(folder: Path, trilemma: Command) -> None:
    run = ("validate", "digits/standard", "data.name=shards", "data.root=shards", "training.batch_size=4")
    result = trilemma(*run, "data.resident=6", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "14 train, 2 held-out, 4 test images in 2 classes (cat, dog), read from shards" in result.stdout
    assert "starts from 6 of the 14 training images" in result.stdout


def test_a_run_that_cannot_begin_says_why_in_one_line(
    folder: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("train", "digits/standard", "data.name=shards", "--out", "run")
    assert "needs root: a folder of tar shards (trilemma shards" in mistake(*run)
    assert "photos: the number of its images is unknown" in mistake(*run, "data.root=photos")
    assert "nowhere: data.root does not exist" in mistake(*run, "data.root=nowhere")
    assert "larger than the 14 train images" in mistake(*run, "data.root=shards")
    (folder / "train-000001.tar").rename(folder / "away")
    assert "train-000001.tar: this shard is missing" in mistake(*run, "data.root=shards")
    (folder / "away").rename(folder / "train-000001.tar")
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    assert "pip install -e '.[stream]'" in mistake(*run, "data.root=shards")
    assert not Path("run").exists()


def test_wrong_sources_are_one_line(folder: Path, mistake: Callable[..., str]) -> None:
    assert "photos: holds no .tar; write it with: trilemma shards SOURCE" in mistake("shards", "photos")
    assert "no such folder of shards" in mistake("shards", "nowhere")
    assert "shards: is not empty; refusing to overwrite" in mistake("shards", "photos", "--out", "shards")
    assert "data set 'folder' needs --root" in mistake("shards", "folder", "--out", "new")
    assert "--root: goes with a data set's name" in mistake("shards", "shards", "--root", "photos")
    assert "nowhere: data.root does not exist" in mistake("shards", "nowhere", "--out", "new")
