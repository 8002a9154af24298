"""Which images are evaluated: all of a user's own, never those that the classifier was trained on; the row says it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.recipe import load_config
from trilemma.errors import DataError
from trilemma.evaluation.evaluate import evaluate_run
from trilemma.evaluation.source import open_data, open_images, open_source
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.build import build_classifier, build_data


def photo(label: int, index: int, size: int = 8, mode: str = "RGB") -> bytes:
    """A picture of which the ``label``-th quarter of the rows is bright."""
    pixels = np.random.default_rng(1000 * label + index).integers(0, 60, (size, size, 3), dtype=np.uint8)
    pixels[label * size // 4 : (label + 1) * size // 4] += 180
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def photos(
    root: Path,
    names: tuple[str, ...] = ("cat", "dog", "eel"),
    count: int = 4,
    first: int = 0,
    **options: object,
) -> Path:
    """``root/NAME/K.png``, the class with the n-th name bright in the n-th quarter."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            (root / name / f"{index}.png").write_bytes(photo(label, index, **options))  # type: ignore[arg-type]
    return root


class Rows(nn.Module):
    """The brightness of each quarter of the rows: a perfect classifier of :func:`photos`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        quarters = images.mean((1, 3)).unflatten(1, (4, -1)).mean(2)
        scores: torch.Tensor = quarters[:, : self.classes] * 10
        return scores


@pytest.fixture(autouse=True)
def cache(shared_cache: None) -> None:
    """Decoded images go into a temporary folder."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: None) -> tuple[Path, Path]:
    """A run, with random weights, on a folder of 60 photos without splits; and that folder."""
    folder = tmp_path_factory.mktemp("own")
    root = photos(folder / "photos", count=20)
    options = {"data.name": "folder", "data.root": str(root), "network.width": 4}
    config = load_config("digits/standard", options)
    run = RunDirectory.create(folder / "run", config)
    train = build_data(config).train
    clf = build_classifier(config, train)
    clf.about = {"data": train.name, "checkpoint": "last"}
    clf.save(run.last_classifier)
    return run.path, root


def test_all_photos_without_splits_are_evaluated(tmp_path: Path) -> None:
    clf = Classifier(Rows(3), 3, class_names=("cat", "dog", "eel"))
    row = trilemma.evaluate(clf, photos(tmp_path / "photos"), ["clean"])["clean"]
    assert (row["value"], row["count"]) == (1.0, 12)
    assert (row["data"]["split"], row["data"]["images"]) == ("all", "all 12, source without splits")
    row = trilemma.evaluate(clf, tmp_path / "photos", ["clean"], images=6)["clean"]
    assert row["data"]["images"] == "first 6 of 12, stratified order, source without splits"


def test_with_splits_the_test_images_are_evaluated(tmp_path: Path) -> None:
    clf = Classifier(Rows(3), 3, class_names=("cat", "dog", "eel"))
    photos(tmp_path / "photos" / "Train", count=9)
    photos(tmp_path / "photos" / "Test", first=50)
    row = trilemma.evaluate(clf, tmp_path / "photos", ["clean"])["clean"]
    assert (row["data"]["split"], row["data"]["images"]) == ("test", "all 12")
    # Asked for the training images by name: they are used, and named.
    row = trilemma.evaluate(clf, tmp_path / "photos" / "Train", ["clean"])["clean"]
    assert (row["data"]["split"], row["data"]["images"]) == ("train", "all 27, source without a test split")


def test_a_run_is_never_evaluated_on_its_own_training_images(trained: tuple[Path, Path]) -> None:
    """By default, by the path of its folder, by an archive of the same images, and as a file alone."""
    path, root = trained
    archive = path.parent / "same.zip"
    with zipfile.ZipFile(archive, "w") as written:
        for file in root.rglob("*.png"):
            written.write(file, file.relative_to(root))
    run = RunDirectory.open(path)
    clf = load(path)
    stored = load(run.classifiers()["last"])
    own = open_images(clf, run, None)
    link = path.parent / "link"
    link.symlink_to(root)
    words = "all 12, the stratified fifth that training leaves out of a source without a test split"
    for images in (
        open_images(clf, run, root), open_images(clf, run, str(link)), open_images(stored, None, root),
        open_data(clf, archive), own,
    ):  # fmt: skip
        assert torch.equal(images.images, own.images) and images.split == "test"
    row = evaluate_run(path, ["clean"])["clean"]
    assert (row["data"]["images"], row["data"]["split"]) == (words, "test")
    # Other photos are all used.
    assert open_images(clf, run, photos(path.parent / "other", first=100)).split == "all"


def test_a_run_whose_folder_changed_is_refused_on_it(trained: tuple[Path, Path]) -> None:
    path, root = trained
    run, clf = RunDirectory.open(path), load(path)
    (root / "cat" / "new.png").write_bytes(photo(0, 999))
    try:
        for data in (None, root):
            with pytest.raises(DataError, match="its images changed since the training"):
                open_images(clf, run, data)
    finally:
        (root / "cat" / "new.png").unlink()


TWELVE = tuple(map(str, range(12)))


def test_numbered_folders_are_matched_by_number(tmp_path: Path) -> None:
    """Folders sort as text, 10 before 2; the outputs of a network without class names do not."""

    class First(nn.Module):
        """The class is 12 times the first pixel."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            value = images[:, 0, 0, 0] * 255
            return -(value[:, None] / 20 - torch.arange(12)).abs()

    for label, name in enumerate(TWELVE):
        (tmp_path / name).mkdir()
        pixels = np.full((4, 4), 20 * label, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
    for clf in (Classifier(First(), 12), open_source(First(), tmp_path)):
        row = trilemma.evaluate(clf, tmp_path, ["clean"], lint=False)["clean"]
        assert (row["value"], row["data"]["images"]) == (1.0, "all 12, source without splits")
    np.savez(tmp_path / "a.npz", images=np.full((12, 4, 4), 0, np.uint8), labels=np.arange(12))
    named = Classifier(First(), 12, class_names=[f"class {k}" for k in range(12)])
    images = open_data(named, tmp_path / "a.npz")
    assert images.labels.tolist() == list(range(12))
    assert images.selection.endswith("classes by number, since the data have no class names")


def test_order_is_named_where_it_is_the_only_choice(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    words = "all 12, source without splits, classes by order, since the classifier has no class names"
    for clf in (Classifier(Rows(3), 3), open_source(Rows(3), root)):
        row = trilemma.evaluate(clf, root, ["clean"], lint=False)["clean"]
        assert (row["value"], row["data"]["images"]) == (1.0, words)
    # By name, the order of the classifier's classes does not matter.
    clf = Classifier(Rows(3), 3, class_names=("eel", "cat", "dog"))
    assert trilemma.evaluate(clf, root, ["clean"], lint=False)["clean"]["value"] == 0.0


def test_photos_take_the_shape_of_the_classifier(tmp_path: Path) -> None:
    names = ("cat", "dog", "eel")
    root = photos(tmp_path / "grey", size=32, mode="L")
    clf = Classifier(Rows(3), 3, class_names=names, image_shape=(3, 8, 12))
    row = trilemma.evaluate(clf, root, ["clean"], lint=False)["clean"]
    assert row["data"]["name"].endswith("@8x12")
    assert row["data"]["images"].endswith("grey repeated in three channels")
    colour = photos(tmp_path / "colour", size=8)
    clf = Classifier(Rows(3), 3, class_names=names, image_shape=(1, 8, 8))
    images = open_data(clf, colour)
    picture = Image.open(colour / "cat" / "0.png").convert("L")
    assert np.array_equal(images.images[0, 0].numpy(), np.asarray(picture))
    assert images.selection == "source without splits, colour converted to grey"


def test_a_diagnosis_says_it_too(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    clf = Classifier(network, 3, image_shape=(3, 8, 8), class_names=("cat", "dog", "eel"))
    root = photos(tmp_path / "photos")
    record = trilemma.diagnose(clf, root, trilemma.Threat("linf", "8/255"), images=12, attacks=["pgd"])
    assert record["data"]["images"] == "all 12, source without splits"
