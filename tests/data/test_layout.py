"""Layouts: split, class and file are found in paths."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilemma.data.layout import list_images, split_spans
from trilemma.errors import DataError

names = st.text("abcxyz019_-", min_size=1, max_size=5)


def found(*files: str, folders: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(place.split, place.class_name) for place in list_images(files, folders, "src")]


def test_splits_above_classes() -> None:
    assert found("train/cat/1.png", "test/dog/x/2.JPG", "val/cat/3.webp") == [
        ("test", "dog"),
        ("train", "cat"),
        ("val", "cat"),
    ]


def test_classes_alone() -> None:
    assert found("cat/1.png", "dog/deep/er/2.png") == [("all", "cat"), ("all", "dog")]


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ("Train", "Test", "test"),
        ("TRAIN", "VAL", "val"),
        ("training", "Testing", "test"),
        ("train", "valid", "val"),
        ("Train", "Validation", "val"),
        ("train", "dev", "val"),
        ("training", "eval", "val"),
    ],
)
def test_splits_in_any_case_and_by_other_names(train: str, test: str, split: str) -> None:
    for prefix in ("", "my/data/"):
        files = (f"{prefix}{train}/cat/1.png", f"{prefix}{test}/cat/2.PNG")
        assert found(*files) == sorted([(split, "cat"), ("train", "cat")])


def test_a_parent_of_everything_is_no_split_by_another_name() -> None:
    assert found("dev/cat/1.png", "dev/dog/1.png") == [("all", "cat"), ("all", "dog")]
    assert found("Eval/test/cat/1.png", "Eval/train/cat/1.png") == [("test", "cat"), ("train", "cat")]


def test_classes_may_have_the_names_of_splits() -> None:
    assert found("dev/1.png", "cat/1.png") == [("all", "cat"), ("all", "dev")]
    assert found("dev/a/1.png", "cat/a/1.png") == [("all", "cat"), ("all", "dev")]
    assert found("train/valid/1.png", "test/valid/1.png") == [("test", "valid"), ("train", "valid")]


def test_shared_folders_are_skipped() -> None:
    assert found("my/data/train/cat/1.png", "my/data/train/dog/1.png") == [("train", "cat"), ("train", "dog")]
    assert found("./data/cat/1.png", "./data/dog/1.png") == [("all", "cat"), ("all", "dog")]


def test_a_class_may_be_called_train() -> None:
    assert found("train/1.png", "car/1.png") == [("all", "car"), ("all", "train")]


def test_other_files_and_hidden_ones_do_not_count() -> None:
    files = (
        "cat/1.png",
        "cat/notes.txt",
        "README",
        "labels.csv",
        ".git/x/1.png",
        "__MACOSX/cat/._1.png",
        "cat/.x.png",
    )
    assert found(*files) == [("all", "cat")]


@settings(max_examples=50, deadline=None)
@given(
    st.sets(st.tuples(st.sampled_from(["train", "val", "test"]), names, names), min_size=1, max_size=12),
    st.lists(names, max_size=2),
)
def test_every_well_formed_path_is_read_back(images: set[tuple[str, str, str]], prefix: list[str]) -> None:
    files = ["/".join([*prefix, *parts]) + ".png" for parts in images]
    result = list_images(files, (), "src")
    assert {(place.split, place.class_name, PurePosixPath(place.path).stem) for place in result} == images


@pytest.mark.parametrize(
    ("files", "folders", "message"),
    [
        (("a/readme.txt",), (), "holds no image file"),
        (("1.png", "2.png"), (), r"1\.png is not in a class folder"),
        (("train/1.png", "train/2.png"), (), r"train/1\.png is not in a class folder"),
        (
            ("train/cat/1.png", "extra/cat/1.png"),
            (),
            r"folders \['extra'\] are beside the splits \['train'\]",
        ),
        (
            ("Training/a/1.png", "Testing/a/1.png", "x/a/1.png"),
            (),
            r"folders \['x'\] are beside the splits \['Testing', 'Training'\]",
        ),
        (
            ("train/a/1.png", "val/a/1.png", "valid/a/1.png"),
            (),
            "folders val and valid are both the val part",
        ),
        (("Train/a/1.png", "train/a/1.png"), (), "folders Train and train are both the train part"),
        (
            ("cat/train/1.png", "dog/test/1.png"),
            (),
            r"folders \['test', 'train'\] are inside the class folders",
        ),
        (("cat/1.png",), ("cat", "dog"), "class folder dog has no image"),
        (
            ("d/train/cat/1.png",),
            ("d", "d/train/cat", "d/train/dog"),
            "class folder d/train/dog has no image",
        ),
    ],
)
def test_faults_are_named(files: tuple[str, ...], folders: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_images(files, folders, "src")


def test_splits_with_different_classes_are_refused() -> None:
    with pytest.raises(DataError, match="class 'dog' is in train alone"):
        split_spans(list_images(["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"], (), "src"), "src")
