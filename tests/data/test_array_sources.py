"""Arrays: npz files and the caller's own tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trilemma.data import load_images, load_splits
from trilemma.errors import DataError

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (20, 5, 6, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_split_arrays(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays: dict[str, np.ndarray] = {names[0].format(split): COLOUR for split in ("train", "test")}
    arrays |= {names[1].format(split): LABELS[:, None] for split in ("train", "test")}
    splits = load_splits("folder", save(tmp_path / "a.npz", **arrays, class_names=np.array(["even", "odd"])))
    assert np.array_equal(splits.test.images.numpy(), COLOUR.transpose(0, 3, 1, 2))
    assert splits.test.labels.tolist() == LABELS.tolist()
    assert splits.test.class_names == ("even", "odd")
    assert (len(splits.train), len(splits.held_out)) == (18, 2)


def test_one_pair_of_arrays_is_split_like_a_folder_without_splits(tmp_path: Path) -> None:
    splits = load_splits("folder", save(tmp_path / "a.npz", images=COLOUR[:, :, :, 0], labels=LABELS))
    assert [len(part) for part in (splits.train, splits.held_out, splits.test)] == [14, 2, 4]
    assert splits.train.image_shape == (1, 5, 6)


def test_channels_first_and_floats_are_understood(tmp_path: Path) -> None:
    floats = save(tmp_path / "test.npz", images=COLOUR.transpose(0, 3, 1, 2) / 255.0, labels=LABELS)
    assert np.array_equal(load_images(floats, split="all").images.numpy(), COLOUR.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": COLOUR}, r"arrays \['images'\]; needs images and labels"),
        ({"images": COLOUR, "labels": LABELS - 1}, "label -1 of image 0 is out of range"),
        ({"images": COLOUR, "labels": LABELS * 2}, "class '1' has no image in all"),
        ({"images": COLOUR, "labels": LABELS[:5]}, "needs 20 integers, one per image"),
        ({"images": COLOUR, "labels": LABELS / 2}, "needs 20 integers"),
        ({"images": COLOUR * 1.0, "labels": LABELS}, r"must be in \[0, 1\]"),
        ({"images": COLOUR.astype(np.int32), "labels": LABELS}, "type int32; store uint8"),
        ({"images": COLOUR[:, :, :, [0, 1]], "labels": LABELS}, r"shape \(20, 5, 6, 2\)"),
        (
            {"images": COLOUR, "labels": LABELS, "class_names": np.array(["one"])},
            "label 1 of image 1 is out of range",
        ),
        ({"images": np.array([{}, {}]), "labels": LABELS[:2]}, "truncated, damaged or pickled npz"),
    ],
)
def test_faulty_npz_files_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(save(tmp_path / "a.npz", **arrays))


def test_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=COLOUR, labels=LABELS)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"a\.npz: truncated"):
        load_images(path)


def test_float_tensors_are_never_rounded() -> None:
    images, labels = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loaded = load_images((images, labels))
    assert torch.equal(loaded.float_images(), images)
    assert loaded.num_classes == 3
    assert loaded.name.startswith("tensors:")
    assert loaded.name != load_images((images, labels.flip(0))).name
    assert load_images((images, labels), class_names=["a", "b", "c", "d"]).num_classes == 4


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(2, 3, 4, 4) * 255, torch.tensor([0, 1]), r"must be in \[0, 1\]"),
        (torch.full((2, 3, 4, 4), torch.nan), torch.tensor([0, 1]), "without NaN"),
        (torch.rand(3, 4, 4), torch.tensor([0, 1, 1]), r"needs uint8 or float \[N, C, H, W\]"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0.0, 1.0]), "labels are torch.float32"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0, 1, 1]), "one per image"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0, -1]), "label -1 of image 1 is out of range"),
    ],
)
def test_faulty_tensors_are_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images((images, labels))
