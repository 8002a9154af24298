"""Images given in Python: whatever form they come in, the same image set; what is not understood is one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import trilemma
from trilemma.data import ImageSet, load_images
from trilemma.errors import DataError
from trilemma.evaluation.source import open_data

LEVELS = torch.randint(0, 256, (12, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X, Y = LEVELS.float() / 255, torch.arange(12) % 3
DIRECT = load_images((X, Y))


class Photos(Dataset[Any]):
    """As of torchvision: PIL images, numbers as labels, and names."""

    classes = ("cat", "dog", "eel")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(LEVELS[index].permute(1, 2, 0).numpy()), int(Y[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(X.numpy(), Y.tolist(), strict=True)


SAME: dict[str, Any] = {
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "lists": (X.tolist(), Y.tolist()),
    "channels last": (X.permute(0, 2, 3, 1).numpy(), Y.numpy()[:, None]),
    "other types": (X.double().numpy().astype(">f8"), Y.numpy().astype(np.uint16)),
    "list of tensors": (list(X), list(Y)),
    "pairs": list(zip(X, Y, strict=True)),
    "data set": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=5),
    "stream": Stream(),
    "loader of a stream": DataLoader(Stream(), batch_size=5),
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_is_the_same_set(form: str) -> None:
    images = load_images(SAME[form])
    assert torch.equal(images.images, X) and torch.equal(images.labels, Y)
    assert (images.name, images.split, images.selection) == (DIRECT.name, "all", "")
    first_two = load_images([(X[0], 0), (X[1], 1)])
    assert torch.equal(first_two.images, X[:2])


def test_pictures_keep_their_levels_and_names() -> None:
    images = load_images(Photos())
    assert torch.equal(images.images, LEVELS) and images.class_names == ("cat", "dog", "eel")
    grey = load_images(([Image.new("L", (6, 8), 7)] * 2, [0, 1]))
    assert (grey.image_shape, grey.images.unique().tolist()) == ((1, 8, 6), [7])
    assert load_images((LEVELS[:, 0].numpy(), Y)).image_shape == (1, 8, 6)


def test_classes_of_a_data_set_are_matched_by_name() -> None:
    clf = trilemma.Classifier(torch.nn.Flatten(), 3, class_names=("eel", "cat", "dog"))
    loader = DataLoader(Photos(), batch_size=4, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    for data in (Photos(), loader, Subset(Photos(), range(12))):
        images = open_data(clf, data)
        assert images.labels.tolist() == [(label + 1) % 3 for label in Y.tolist()]
    unnamed = open_data(trilemma.Classifier(torch.nn.Flatten(), 3), Photos())
    assert unnamed.labels.tolist() == Y.tolist() and "classes by order" in unnamed.selection
    # Labels without names are outputs of the classifier.
    assert open_data(clf, (X, Y)).labels.tolist() == Y.tolist()


def test_images_that_a_loader_drops_are_told() -> None:
    images = load_images(DataLoader(TensorDataset(X, Y), batch_size=5, drop_last=True))
    assert (len(images), images.selection) == (10, "the DataLoader yields 10 of 12 images")


def test_a_row_of_a_loader_equals_that_of_the_arrays() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 6, 3))
    clf = trilemma.Classifier(network, 3)
    rows = [
        trilemma.evaluate(clf, data, ["clean"], lint=False)["clean"] for data in (SAME["loader"], (X, Y), DIRECT)
    ]  # fmt: skip
    assert len({(row["value"], row["count"], row["data"]["name"]) for row in rows}) == 1


class Broken(Photos):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("no column 'image'")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(TensorDataset((X - 0.5) / 0.25, Y)), r"range from -2 to 2; .* leave normalisation to the"),
        ((X * 255, Y), r"range from 0 to 255; .* divide by 255"),
        (((image, label) for image, label in zip(X, Y, strict=True)), "a generator that can be read only once"),
        (X, "got a Tensor; give a name, a path"),
        (5, "got a int; give"),
        (None, "got a NoneType; give"),
        ({"images": X}, "got a dict; give"),
        ((X, Y, Y), r"item 0 is a Tensor; it must be \(image, label\)"),
        ([{"image": X[0], "label": 0}], r"item 0 is a dict; it must be"),
        ([(X[0], 0, "x")], "item 0 is 3 values"),
        ((X, Y.float()), "labels are torch.float32; needs integers"),
        ((X, ["cat"] * 12), "labels are a list of <U3; give numbers"),
        (([[1, 2], [3]], [0, 1]), "images are lists of different lengths"),
        ([(X[0], 0), (X[1, :, :4], 1), (X[2], 2)], r"images of different form, .* \[3, 8, 6\] and .* \[3, 4, 6\]"),
        ((X, Y[:4]), "one per image"),
        ([], "the list is empty"),
        (Broken(), r"the Broken raised KeyError: \"no column 'image'\""),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_one_line(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_images(data)
    assert "\n" not in str(caught.value)


def test_an_image_set_passes() -> None:
    clf = trilemma.Classifier(torch.nn.Flatten(), 3)
    assert isinstance(open_data(clf, DIRECT), ImageSet)
