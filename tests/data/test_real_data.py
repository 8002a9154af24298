"""The real data at hand get their true names, sizes and pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from trilemma.data import load_images, load_splits
from trilemma.errors import DataError


def test_cifar10_as_jpeg_never_passes_for_the_official_pixels(shared: Path) -> None:
    test = load_images(shared / "cifar10" / "test.tar.gz")
    assert (test.name, test.image_shape, len(test)) == ("cifar10-jpeg", (3, 32, 32), 10_000)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert test.class_names[0] == "airplane"
    assert test.class_names[9] == "truck"


def test_lossless_subset_comes_in_the_official_order(shared: Path) -> None:
    splits = load_splits("cifar10", shared / "cifar10-lossless-subset")
    assert splits.test.name == "cifar10-subset4000"
    assert [len(part) for part in (splits.train, splits.held_out, splits.test)] == [3600, 400, 1000]
    official = (shared / "cifar10" / "official_labels.txt").read_text().split("\n")
    labels = next(line for line in official if line.startswith("test_first1000")).split()[1]
    assert "".join(map(str, splits.test.labels.tolist())) == labels


def test_mnist_pictures_are_the_official_files_bit_for_bit(shared: Path) -> None:
    """Checksums of the uncompressed official files, header and all."""
    test = load_images("mnist", root=shared / "mnist" / "test.tar.gz")
    assert test.name == "mnist"
    header = bytes.fromhex("00000803") + (10_000).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    assert (
        hashlib.md5(header + test.images.numpy().tobytes()).hexdigest() == "2646ac647ad5339dbf082846283269ea"
    )
    header = bytes.fromhex("00000801") + (10_000).to_bytes(4, "big")
    labels = test.labels.to(torch.uint8).numpy().tobytes()
    assert hashlib.md5(header + labels).hexdigest() == "27ae3e4e09519cfbb04c329615203637"


def test_tiny_imagenet_mixes_grey_and_colour(shared: Path) -> None:
    test = load_images(shared / "tiny-imagenet" / "val.tar.gz")
    assert (len(test), test.num_classes, test.image_shape) == (10_000, 200, (3, 64, 64))
    assert test.name == "tiny-imagenet"
    grey = (test.images[:, 0] == test.images[:, 1]).flatten(1).all(1) & (
        test.images[:, 0] == test.images[:, 2]
    ).flatten(1).all(1)
    assert int(grey.sum()) >= 168


def test_truncated_real_archive_is_refused(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.tar.gz"
    path.write_bytes((shared / "cifar10" / "test.tar.gz").read_bytes()[:1_000_000])
    with pytest.raises(DataError, match=r"test\.tar\.gz: truncated or damaged archive"):
        load_images(path)
