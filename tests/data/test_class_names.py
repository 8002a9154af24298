"""Class names: one form, no two alike at any door, and labels matched by name wherever both sides have names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import trilemma
from trilemma.data import ImageSet, load_images, load_splits
from trilemma.data.arrays import as_arrays
from trilemma.data.class_names import match_classes, normal_form
from trilemma.data.sources import in_class_order
from trilemma.errors import CheckpointError, UserError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
TWICE = ["crane", "heron", "crane"]
IMAGES, LABELS = np.zeros((6, 4, 4), np.uint8), np.array([0, 1, 2, 0, 1, 2])
Function = Callable[[], object]


def test_one_name_in_every_form() -> None:
    forms = (COMPOSED, DECOMPOSED, COMPOSED.encode(), DECOMPOSED.encode(), np.str_(DECOMPOSED))
    assert {normal_form(form) for form in forms} == {COMPOSED}
    # A file name in Latin-1, as Python reads it.
    assert normal_form(b"caf\xe9".decode("utf-8", "surrogateescape")) == "caf\ufffd"


def doors(tmp_path: Path) -> dict[str, Function]:
    arrays: dict[str, Any] = {"images": IMAGES, "labels": LABELS}
    tensors = torch.zeros(6, 1, 4, 4), torch.from_numpy(LABELS)
    np.savez(tmp_path / "text.npz", class_names=np.array(TWICE), **arrays)
    np.savez(tmp_path / "bytes.npz", label_names=np.array(TWICE, "S"), **arrays)
    return {
        "npz": lambda: load_images(tmp_path / "text.npz"),
        "bytes in npz": lambda: load_images(tmp_path / "bytes.npz"),
        "tensors": lambda: load_images(tensors, class_names=TWICE),
        "image set": lambda: ImageSet(*tensors, tuple(TWICE), "mine", "test"),
        "mapping": lambda: as_arrays({"test": (IMAGES, LABELS), "class_names": TWICE}, "mine"),
        "classifier": lambda: trilemma.Classifier(torch.nn.Flatten(), 3, class_names=TWICE),
        "two forms": lambda: trilemma.Classifier(torch.nn.Flatten(), 2, class_names=[COMPOSED, DECOMPOSED]),
    }


def test_two_classes_of_one_name_are_refused_at_every_door(tmp_path: Path) -> None:
    for door in doors(tmp_path).values():
        with pytest.raises(UserError, match=r"two classes are named '(crane|café)' \(labels 0 and [12]\)"):
            door()


def test_a_classifier_file_with_one_name_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = trilemma.Classifier(torch.nn.Flatten(), 3)
    # As files were written before names were checked.
    clf.class_names = ("crane", "heron", "crane")
    clf.save(tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match=r"old\.safetensors: two classes are named 'crane'"):
        trilemma.Classifier.load(tmp_path / "old.safetensors", torch.nn.Flatten())


def test_bytes_in_npz_are_decoded(tmp_path: Path) -> None:
    names = np.array([name.encode() for name in ("eel", COMPOSED, "dog")])
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS, class_names=names)
    assert load_images(tmp_path / "a.npz").class_names == ("eel", COMPOSED, "dog")


@pytest.mark.parametrize("splits", [("", ""), ("train/", "test/")])
def test_a_class_folder_in_two_unicode_forms_is_one_class(
    tmp_path: Path, build: Any, splits: tuple[str, str]
) -> None:
    first, second = splits
    files = {f"{first}{COMPOSED}/1.png": build.grey(1), f"{second}{DECOMPOSED}/1.png": build.grey(2)}
    files |= {f"{split}dog/1.png": build.grey(3) for split in splits}
    images = load_images(build.folder(tmp_path, files), split="all")
    assert images.class_names == (COMPOSED, "dog")
    assert sorted(images.images[images.labels == 0, 0, 0, 0].tolist()) == [1, 2]


def test_the_name_of_a_data_set_does_not_depend_on_the_unicode_form(tmp_path: Path, build: Any) -> None:
    def named(form: Literal["NFC", "NFD"]) -> str:
        name = unicodedata.normalize(form, "café")
        files = {f"{name}/{name}.png": build.grey(1), "dog/z.png": build.grey(2), "dog/é.png": build.grey(3)}
        return load_images(build.folder(tmp_path / form, files)).name

    assert named("NFC") == named("NFD")


TWELVE = tuple(map(str, range(12)))
AS_TEXT = tuple(sorted(TWELVE))


@pytest.mark.parametrize(
    ("names", "classifier_names", "labels", "by"),
    [
        (("cat", "dog"), ("dog", "eel", "cat"), (2, 0), ""),
        ((DECOMPOSED, "dog"), ("dog", COMPOSED), (1, 0), ""),
        # Folders sort as text; a classifier without names has its classes in the order of numbers.
        (AS_TEXT, TWELVE, tuple(map(int, AS_TEXT)), ""),
        (TWELVE, AS_TEXT, tuple(AS_TEXT.index(name) for name in TWELVE), ""),
        (("00", "01", "02"), ("0", "1", "2"), (0, 1, 2), ""),
        (("3", "7"), tuple("0123456789"), (3, 7), ""),
        (("cat", "dog"), ("0", "1"), (0, 1), "by order, since the classifier has no class names"),
        (("1", "10", *"23456789"), tuple("0123456789"), (0, 9, *range(1, 9)), "by order of their numbers"),
        (("0", "1"), ("cat", "dog"), (0, 1), "by number, since the data have no class names"),
    ],
)  # fmt: skip
def test_classes_are_matched(
    names: tuple[str, ...], classifier_names: tuple[str, ...], labels: tuple[int, ...], by: str
) -> None:
    match = match_classes(names, classifier_names, "src")
    assert match is not None and match.labels == labels and by in match.by and bool(by) == bool(match.by)


def test_what_cannot_be_matched() -> None:
    assert match_classes(("cat", "dog"), ("0", "1", "2"), "src") is None
    with pytest.raises(UserError, match=r"src: class 'cats' is none of the classifier's 2 .* mean 'cat'"):
        match_classes(("cats", "dog"), ("cat", "dog"), "src")


def test_an_image_set_is_matched_by_name_too(small_set: ImageSet) -> None:
    reordered = in_class_order(small_set, ("c", "a", "b"))
    assert reordered.labels.tolist() == [(label + 1) % 3 for label in small_set.labels.tolist()]
    assert (reordered.class_names, reordered.selection) == (("c", "a", "b"), "")
    unnamed = in_class_order(small_set, ("0", "1", "2"))
    assert unnamed.labels.tolist() == small_set.labels.tolist()
    assert (unnamed.class_names, "classes by order" in unnamed.selection) == (("a", "b", "c"), True)


def test_validate_lists_the_classes_and_what_is_not_counted(tmp_path: Path, build: Any) -> None:
    from trilemma.training.estimate import _describe_data

    files = {f"{name}/{k}.png": build.grey(k) for name in "abcdefg" for k in range(9)}
    splits = load_splits("folder", build.folder(tmp_path / "pets", files | {"a/x.txt": b""}))
    assert _describe_data(splits).endswith(
        "7 classes (a, b, c, d, e, ...); not counted: a/x.txt: no ending of an image (.txt)"
    )
