"""What is an image: every ending that Pillow reads, files without one by their bytes; the rest is told, not lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from trilemma.data import ImageSet, load_images, load_splits
from trilemma.data.pictures import endings
from trilemma.data.sources import load_unlabelled
from trilemma.errors import DataError


def values(images: ImageSet) -> list[int]:
    return sorted(images.images[:, 0, 0, 0].tolist())


def encoded(value: int, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_other_endings_and_files_without_one_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "a.JFIF": encoded(10, "JPEG"),
        "b.jpe": encoded(20, "JPEG"),
        "c.TGA": encoded(30, "TGA"),
        "d": encoded(40, "PNG"),
        "e.jp2": encoded(50, "JPEG2000"),
        "f.dib": encoded(60, "DIB"),
        "g": encoded(70, "BMP"),
    }
    if features.check("avif"):
        assert ".avif" in endings()
    (tmp_path / "cat").mkdir()
    for name, data in files.items():
        (tmp_path / "cat" / name).write_bytes(data)
    images = load_images(tmp_path)
    assert values(images) == [10, 20, 30, 40, 50, 60, 70]
    assert images.remarks == ("files: 2 without an ending, 1 .jfif, 1 .jpe, 1 .tga, 1 .jp2, 1 .dib",)
    assert told(capsys) == ""


def test_other_files_are_told_by_kind(tmp_path: Path, build: Any, capsys: pytest.CaptureFixture[str]) -> None:
    files = build.classes("", 3) | {
        "cat/IMG_1.heic": b"x",
        "cat/IMG_2.heic": b"x",
        "labels.csv": b"1,2",
        # Text that begins like a BMP and like a PPM.
        "cat/LICENSE": b"BMW and others",
        "dog/notes": b"P1 is a matrix",
        "cat/.old.png": build.grey(9),
        "cat/._0.png": b"attributes",
        ".git/0.png": build.grey(9),
    }
    root = build.folder(tmp_path / "pets", files)
    assert len(load_images(root)) == 6
    assert told(capsys).splitlines() == [
        f"{root}: not counted: {line}"
        for line in (
            "cat/.old.png: hidden, since a name begins with a dot or is __MACOSX",
            "cat/IMG_1.heic and 2 more: no ending of an image (.csv, .heic)",
            "cat/LICENSE and 1 more: without an ending, and no image by the first bytes",
        )
    ]


def test_archives_and_images_that_are_not_read_are_told(
    tmp_path: Path, build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "pets"
    build.tar(root / "train.tar", build.classes("", 10))
    build.zip(root / "Test.zip", build.classes("", 2, first=50))
    build.zip(root / "more.zip", build.classes("", 2, first=70))
    (root / "poster.png").write_bytes(build.grey(1))
    splits = load_splits("folder", root)
    assert values(splits.test) == [50, 51, 150, 151]
    lines = told(capsys)
    assert "not counted: more.zip: its name begins with no split" in lines
    assert "not counted: poster.png: an image beside archives" in lines


def test_an_archive_and_a_folder_may_be_the_two_splits(
    tmp_path: Path, build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    build.zip(tmp_path / "Train.zip", build.classes("", 10))
    build.folder(tmp_path / "Test", build.classes("", 2, first=50))
    splits = load_splits("folder", tmp_path)
    assert (len(splits.train) + len(splits.held_out), values(splits.test)) == (20, [50, 51, 150, 151])
    # Unpacked in place: the folder is used.
    build.zip(tmp_path / "Test.zip", build.classes("", 3, first=70))
    assert values(load_splits("folder", tmp_path).test) == [50, 51, 150, 151]
    assert "Test.zip: an archive beside a folder of the same split" in told(capsys)


def test_arrays_that_are_not_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.npz"
    images, labels = np.zeros((4, 4, 4), np.uint8), np.array([0, 1, 0, 1])
    np.savez(path, images=images, labels=labels, extra_images=images)
    assert len(load_images(path)) == 4
    assert f"{path}: not counted: extra_images: no array of images" in told(capsys)
    np.savez(path, x_train=images, y_train=labels, train_images=images, train_labels=labels)
    with pytest.raises(DataError, match="needs images and labels"):
        load_images(path)


@pytest.mark.parametrize("kind", ["flat", "nested", "tar", "archive in folder", "npz", "unnamed"])
def test_unlabelled_images_in_any_arrangement(tmp_path: Path, build: Any, kind: str) -> None:
    """What ``ood:PATH`` and outlier images read."""
    files = {"1.png": build.grey(1), "2.png": build.grey(2), "sub/deep/3.png": build.grey(3)}
    arrays = np.stack([np.full((4, 4), value, np.uint8) for value in (1, 2, 3)])
    path = tmp_path / {"tar": "a.tar", "npz": "a.npz", "unnamed": "a.npz"}.get(kind, "a")
    if kind == "flat":
        build.folder(path, {"1.png": build.grey(1), "2.png": build.grey(2), "3.png": build.grey(3)})
    elif kind == "nested":
        build.folder(path, files)
    elif kind == "tar":
        build.tar(path, files)
    elif kind == "archive in folder":
        path.mkdir()
        build.zip(path / "a.zip", files)
    elif kind == "npz":
        np.savez(path, images=arrays)
    else:
        np.savez(path, arrays)
    found = load_unlabelled(path, "test")
    assert (values(found), found.split, found.name[:12]) == ([1, 2, 3], "all", "imagefolder:")
    with pytest.raises(DataError):
        load_images(path)


def test_unlabelled_images_keep_their_classes_where_they_have_them(tmp_path: Path, build: Any) -> None:
    root = build.folder(tmp_path / "pets", build.classes("train", 4) | build.classes("test", 2, first=50))
    found = load_unlabelled(root, "test")
    assert (len(found), found.class_names) == (12, ("cat", "dog"))
    # Classes that are not the same in both splits do not matter without labels.
    build.folder(root, {"test/eel/1.png": build.grey(200)})
    assert len(load_unlabelled(root, "test")) == 13
