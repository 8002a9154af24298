"""The classifier that the page shows, its images, and what has been measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.source import ClassifierSource
from trilemma.config.registry import DATASETS
from trilemma.data.image_set import ImageSet, Splits, source_name
from trilemma.data.locate import needs_download
from trilemma.data.outlier_images import convert_channels
from trilemma.data.sources import load_splits
from trilemma.demo.packaged import ACCURACY, CLASSIFIER
from trilemma.errors import DataError
from trilemma.evaluation.evaluate import check_fit, run_splits
from trilemma.evaluation.source import open_data, open_images
from trilemma.pages.words import percent, threat_words
from trilemma.runs.read import read_contents
from trilemma.runs.run_directory import RunDirectory

# Test images that the page offers.
OFFERED = 20
# Rows of robust accuracy from the strongest to the weakest attack; the page shows the first that was measured.
ROBUST = ("autoattack-standard", "pgd-50-10", "pgd-20")


@dataclass(frozen=True)
class Subject:
    """A classifier with its images.

    Attributes:
        clf: in eval mode, on the device of all computations.
        name: where it comes from, as text.
        train, test: images of the data that it was trained on, or ``None``.
        missing: why there are no images, as a sentence; empty if there are.
        accuracy: pairs (name, text) of the measured accuracies; empty if none was measured.
        chains: where the start ``replay-buffer`` finds the chains of training, or ``None``.
    """

    clf: Classifier
    name: str
    train: ImageSet | None = None
    test: ImageSet | None = None
    missing: str = ""
    accuracy: tuple[tuple[str, str], ...] = ()
    chains: Path | None = None
    offered: ImageSet | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.test is not None:
            # The same images, decoded once.
            object.__setattr__(self, "offered", self.test.first(OFFERED))

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images, or ``None`` if unknown."""
        if self.clf.image_shape is not None:
            return self.clf.image_shape
        return None if self.test is None else self.test.image_shape

    def offered_image(self, index: int) -> tuple[Tensor, int]:
        """An offered image, float32 ``[C, H, W]`` in [0, 1], and its label."""
        assert self.offered is not None
        return self.offered.float_images([index])[0], int(self.offered.labels[index])

    def facts(self) -> list[tuple[str, str]]:
        """Pairs (name, text) about the classifier."""
        about, threat = self.clf.about, self.clf.threat
        shape = self.shape
        stored = None if threat is None else {"norm": threat.norm, "radius": threat.radius}
        size = "" if shape is None else f", {shape[2]} x {shape[1]} {'grey' if shape[0] == 1 else 'colour'}"
        unmeasured = (("accuracy", "not measured; `trilemma evaluate` measures it"),)
        return [
            ("classifier", self.name),
            ("method", str(about.get("method", "not stored"))),
            ("images", f"{about.get('data', 'not stored')}{size}, {self.clf.num_classes} classes"),
            ("threat", "none stored" if stored is None else threat_words(stored)),
            *(self.accuracy or unmeasured),
        ]


def open_subject(
    source: ClassifierSource | None, device: torch.device | str = "cpu", data: str | None = None
) -> Subject:
    """Opens a classifier and, without any download, its images.

    Args:
        source: which classifier; ``None`` for the one in this package.
        device: where to compute.
        data: name or path of the images, instead of those of the run or the classifier.

    Raises:
        UserError: the classifier cannot be opened, or ``data`` cannot be read.
    """
    if source is None:
        clf = ClassifierSource(CLASSIFIER).open(device)
        train, test = _fitted(clf, load_splits("digits"))
        return Subject(clf, "the packaged classifier of 8x8 digits", train, test, accuracy=ACCURACY)
    clf, run = source.open(device), source.run
    about: dict[str, Any] = {
        "accuracy": () if run is None else _measured(run.path),
        "chains": None if source.path is None else source.classifier_file(),
    }
    if data is not None:
        return Subject(clf, str(source), *_given_images(clf, run, data), **about)
    try:
        return Subject(clf, str(source), *_own_images(clf, run), **about)
    except DataError as error:
        reason = str(error)
    try:
        return Subject(clf, str(source), *_fitted(clf, load_splits("digits")), **about)
    except DataError:
        missing = f"There are no test images to choose from ({reason}). Upload an image of your own."
        return Subject(clf, str(source), missing=missing, **about)


def _fitted(clf: Classifier, splits: Splits) -> tuple[ImageSet, ImageSet]:
    """Training and test images with labels in the classifier's order; a DataError if they do not fit."""
    check_fit(clf, splits.test)
    return open_data(clf, splits.train), open_data(clf, splits.test)


def _given_images(clf: Classifier, run: RunDirectory | None, data: str) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a name or a path, in the size and the channels of the classifier."""
    if needs_download(data):
        raise DataError(
            f"--data {data}: not on this machine, and this command downloads nothing; give its path"
        )
    test = open_images(clf, run, data)
    check_fit(clf, test)
    channels, *sides = test.image_shape
    name, root = (data, None) if data in DATASETS else ("folder", data)
    train = load_splits(name, root, size=sides[0] if sides[0] == sides[1] else None).train
    train = open_data(clf, convert_channels(train, channels))
    if train.image_shape != test.image_shape:
        raise DataError(f"--data {data}: training images cannot be resized to {sides[1]} x {sides[0]}")
    return train, test


def _own_images(clf: Classifier, run: RunDirectory | None) -> tuple[ImageSet, ImageSet]:
    """Training and test images of the classifier's own data, if they are on this machine; otherwise a DataError."""
    stored = None if run is None else run.config().data
    name = source_name(str(clf.about.get("data", "not stored"))) if stored is None else stored.name
    if needs_download(name, None if stored is None else stored.root):
        raise DataError(f"{name} is not on this machine, and the page downloads nothing; add --data PATH")
    if name not in DATASETS:
        raise DataError("the data of this classifier are not known; add --data NAME or a path")
    return _fitted(clf, load_splits(name) if run is None else run_splits(run.path))


def _measured(run: Path) -> tuple[tuple[str, str], ...]:
    """Clean accuracy, and accuracy under the strongest attack, from the result rows of a run."""
    rows = read_contents(run).rows
    names = [name for name in ("clean", next((n for n in ROBUST if n in rows), "")) if name in rows]
    return tuple(
        (name, f"{percent(rows[name]['value'])} of {rows[name]['count']} test images") for name in names
    )
