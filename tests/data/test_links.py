"""Links in folders and archives: followed, and every file counts once, never both in train and in test."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trilemma.data import ImageSet, load_images, load_splits
from trilemma.errors import DataError


def values(images: ImageSet) -> list[int]:
    return sorted(images.images[:, 0, 0, 0].tolist())


@pytest.fixture
def pets(tmp_path: Path, build: Any) -> Path:
    """Cats 0 to 3 and dogs 100 to 103."""
    root: Path = build.folder(tmp_path / "pets", build.classes("", 4))
    return root


EVERYTHING = [0, 1, 2, 3, 100, 101, 102, 103]


@pytest.mark.parametrize(
    ("link", "target", "reason"),
    [
        ("cat/latest", "..", "a link to a folder above it"),
        ("cat/deep/latest", "../..", "a link to a folder above it"),
        # Above the whole source.
        ("cat/up", "../..", "a link to a folder above it"),
        ("cat/self", ".", "a link to a folder above it"),
        ("kitty", "cat", "a link to a folder that is counted already"),
        ("dog/cats", "../cat", "a link to a folder that is counted already"),
        ("cat/same.png", "0.png", "a link to a file that is counted already"),
    ],
)
def test_a_link_does_not_multiply_images(
    pets: Path, capsys: pytest.CaptureFixture[str], link: str, target: str, reason: str
) -> None:
    (pets / link).parent.mkdir(exist_ok=True)
    (pets / link).symlink_to(target)
    images = load_images(pets)
    assert (values(images), images.class_names) == (EVERYTHING, ("cat", "dog"))
    line = f"{pets}: not counted: {link}: {reason}"
    assert capsys.readouterr().err.splitlines() == [line]
    # Decoded before: the cache has the remark, which is printed once per process.
    assert load_images(pets).remarks == (f"not counted: {link}: {reason}",)
    assert capsys.readouterr().err == ""


def test_the_source_itself_may_be_a_link_to_a_folder_above_it(pets: Path) -> None:
    (pets / "cat" / "up").symlink_to("..")
    assert values(load_images(pets / "cat" / "up")) == EVERYTHING


def test_folders_that_link_to_each_other(pets: Path) -> None:
    (pets / "cat" / "dogs").symlink_to("../dog")
    (pets / "dog" / "cats").symlink_to("../cat")
    assert values(load_images(pets)) == EVERYTHING


def test_links_out_of_the_source_are_followed(pets: Path, tmp_path: Path, build: Any) -> None:
    build.folder(tmp_path / "store", {"eel/1.png": build.grey(200), "x.png": build.grey(9)})
    (pets / "eel").symlink_to(tmp_path / "store" / "eel")
    (pets / "cat" / "9.png").symlink_to(tmp_path / "store" / "x.png")
    images = load_images(pets)
    assert (values(images), images.class_names) == (sorted([*EVERYTHING, 9, 200]), ("cat", "dog", "eel"))


def test_hard_links_count_once(pets: Path) -> None:
    os.link(pets / "cat/0.png", pets / "cat/again.png")
    assert values(load_images(pets)) == EVERYTHING
    os.link(pets / "cat/0.png", pets / "dog/cat.png")
    with pytest.raises(DataError, match=r"cat/0\.png and dog/cat\.png are one file in two classes"):
        load_images(pets)


@pytest.mark.parametrize("make", [os.link, os.symlink])
def test_no_file_is_in_train_and_test(
    tmp_path: Path, build: Any, capsys: pytest.CaptureFixture[str], make: Any
) -> None:
    root = build.folder(tmp_path / "pets", build.classes("train", 10) | build.classes("test", 2, first=50))
    make(root / "train/cat/3.png", root / "test/cat/3.png")
    splits = load_splits("folder", root)
    assert values(splits.test) == [3, 50, 51, 150, 151]
    assert not set(values(splits.test)) & {*values(splits.train), *values(splits.held_out)}
    assert "train/cat/3.png: the same file as one of test" in capsys.readouterr().err


def test_a_split_that_is_a_link_to_another_is_told(
    tmp_path: Path, build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build.folder(tmp_path / "pets", build.classes("train", 10))
    (root / "test").symlink_to("train")
    splits = load_splits("folder", root)
    assert not set(values(splits.test)) & {*values(splits.train), *values(splits.held_out)}
    assert "not counted: test: a link to a folder that is counted already" in capsys.readouterr().err


def test_a_link_to_nothing_is_an_error_that_names_it(pets: Path) -> None:
    (pets / "cat" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        load_images(pets)


def test_special_files_are_not_opened(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(pets / "cat" / "pipe.png")
    assert values(load_images(pets)) == EVERYTHING
    assert "cat/pipe.png: no regular file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_an_error(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"dog: cannot be read \(Permission denied\)"):
        load_images(pets)


def tar_with_links(path: Path, files: Mapping[str, bytes], links: Mapping[str, tuple[bytes, str]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, (kind, target) in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    return path


def zip_with_links(path: Path, files: Mapping[str, bytes], links: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name, target in links.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
    return path


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_links_in_archives_are_followed(
    tmp_path: Path, build: Any, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A class that consists of links to images in a hidden store, and links that add nothing."""
    files = {f"./.store/{k}.png": build.grey(k) for k in range(3)} | {
        f"./dog/{k}.png": build.grey(100 + k) for k in range(3)
    }
    links = {
        **{f"./cat/{k}.png": f"../.store/{k}.png" for k in range(3)},
        "./cat/chain.png": "0.png",
        "./cat/gone.png": "../../elsewhere.png",
        "./cat/circle.png": "circle.png",
        "./dog/up": "..",
        "./puppy": "dog",
    }
    if kind == "zip":
        path = zip_with_links(tmp_path / "pets.zip", files, links)
    else:
        path = tar_with_links(
            tmp_path / "pets.tar", files, {name: (tarfile.SYMTYPE, target) for name, target in links.items()}
        )
    images = load_images(path)
    assert (values(images), images.class_names) == ([0, 1, 2, 100, 101, 102], ("cat", "dog"))
    told = capsys.readouterr().err
    for line in (
        "cat/chain.png: a link to a file that is counted already",
        "cat/circle.png and 1 more: a link to nothing in the archive",
        "dog/up: a link to a folder above it",
        "puppy: a link to a folder that is counted already",
    ):
        assert f"{path}: not counted: {line}\n" in told


def test_hard_links_in_a_tar_are_images(tmp_path: Path, build: Any) -> None:
    """tar stores the second name of a file as a link; before, that image was lost."""
    files = build.classes("train", 10) | build.classes("test", 2, first=50)
    links = {"test/dog/linked.png": (tarfile.LNKTYPE, "train/dog/0.png")}
    splits = load_splits("folder", tar_with_links(tmp_path / "pets.tar", files, links))
    assert values(splits.test) == [50, 51, 100, 150, 151]
    assert 100 not in values(splits.train) + values(splits.held_out)
