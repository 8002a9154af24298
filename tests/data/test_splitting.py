"""Splits are stratified, complete and the same for ever."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trilemma.data import ImageSet, load_splits, readers
from trilemma.data.augmentation import default_augmentation
from trilemma.data.image_set import source_name
from trilemma.data.splitting import allocate, stratified_order, stratified_split
from trilemma.errors import DataError

labels_of = st.lists(st.integers(0, 4), min_size=8, max_size=60).map(torch.tensor)


@settings(max_examples=30, deadline=None)
@given(labels_of, st.floats(0.05, 0.6), st.integers(0, 5))
def test_split_is_a_partition_that_keeps_proportions(
    labels: torch.Tensor, fraction: float, seed: int
) -> None:
    count = round(fraction * len(labels))
    rest, part = stratified_split(labels, count, seed)
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(len(labels)))
    assert len(part) <= count
    for label in labels.unique():
        whole, given_away = int((labels == label).sum()), int((labels[part] == label).sum())
        assert abs(given_away - count * whole / len(labels)) <= 1
        assert given_away < whole


@settings(max_examples=30, deadline=None)
@given(labels_of)
def test_every_prefix_of_the_stratified_order_is_stratified(labels: torch.Tensor) -> None:
    order = stratified_order(labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    classes = len(labels.unique())
    assert len(labels[order[:classes]].unique()) == classes
    for label in labels.unique():
        whole = int((labels == label).sum())
        for prefix in range(1, len(labels) + 1):
            seen = int((labels[order[:prefix]] == label).sum())
            assert abs(seen - whole * prefix / len(labels)) <= classes


def test_allocation_gives_the_exact_total_where_classes_can_spare_it() -> None:
    assert allocate([178, 182, 177, 183, 181], 397) == [78, 80, 78, 81, 80]
    assert allocate([1, 1, 8], 2) == [0, 0, 2]


def test_split_is_fixed_for_ever() -> None:
    """A changed value means that every recorded result was made on other images."""
    _, part = stratified_split(torch.arange(40) % 4, 8, seed=0)
    assert part.tolist() == [5, 11, 14, 16, 17, 32, 38, 39]


def test_digits_have_the_protocol_splits_whatever_the_seed() -> None:
    splits = load_splits("digits")
    assert [len(part) for part in (splits.train, splits.held_out, splits.test)] == [1200, 200, 397]
    assert splits.test.image_shape == (1, 8, 8)
    assert [part.split for part in (splits.train, splits.held_out, splits.test)] == [
        "train",
        "held-out",
        "test",
    ]
    assert torch.equal(splits.held_out.images, load_splits("digits", seed=7, held_out=0.3).held_out.images)
    for part in (splits.train, splits.held_out, splits.test):
        share = torch.bincount(part.labels) / len(part)
        assert share.min() > 0.09
        assert share.max() < 0.11


def test_digits_are_those_of_scikit_learn() -> None:
    """Bit for bit: the hashes are of scikit-learn's ``load_digits``, and of the parts made of it before."""
    with np.load(Path(readers.__file__).with_name("digits.npz")) as archive:
        levels, labels = archive["images"], archive["labels"].astype(np.int64)
        assert "10.24432/C50P49" in str(archive["about"])
    assert (levels.shape, levels.dtype, levels.max()) == ((1797, 8, 8), np.uint8, 16)
    hashed = hashlib.sha256(levels.tobytes() + labels.tobytes()).hexdigest()
    assert hashed == "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"
    splits = load_splits("digits")
    digests = [
        hashlib.sha256(part.images.numpy().tobytes() + part.labels.numpy().tobytes()).hexdigest()[:16]
        for part in (splits.train, splits.held_out, splits.test)
    ]
    assert digests == ["044a96344d19143c", "42fc57a6e7b7fd1f", "e38b7e0edad74186"]


def test_first_covers_the_classes_and_is_nested(small_set: ImageSet) -> None:
    assert sorted(small_set.first(3).labels.tolist()) == [0, 1, 2]
    assert torch.equal(small_set.first(20).images[:7], small_set.first(7).images)
    assert len(small_set.first(1000)) == 30


def test_float_images_are_exact_255ths(small_set: ImageSet) -> None:
    images = small_set.float_images([4, 2])
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert torch.equal(images * 255, small_set.images[[4, 2]].float())


def test_a_mask_selects_like_its_places(small_set: ImageSet) -> None:
    mask = small_set.labels == 1
    assert torch.equal(small_set.subset(mask).images, small_set.images[mask])
    assert torch.equal(small_set.float_images(mask), small_set.float_images(mask.nonzero().flatten()))


def test_image_set_refuses_what_does_not_fit(small_set: ImageSet) -> None:
    with pytest.raises(DataError, match=r"label 2 of image 24 is out of range; 2 classes"):
        ImageSet(small_set.images, small_set.labels, ("a", "b"), "small", "train")
    with pytest.raises(DataError, match="one per image"):
        ImageSet(small_set.images, small_set.labels[1:], ("a", "b", "c"), "small", "train")
    with pytest.raises(DataError, match="uint8 or float32"):
        ImageSet(small_set.images[0], small_set.labels, ("a", "b", "c"), "small", "train")


def test_a_small_training_set_is_a_fixed_stratified_part_under_its_own_name(shared_cache: None) -> None:
    whole, small = load_splits("digits"), load_splits("digits", train_images=300)
    assert (small.train.name, len(small.train)) == ("digits[:300]", 300)
    assert (
        small.train.labels.bincount().float().std() < 1.5
    )  # the classes' own proportions, almost equal here
    assert torch.equal(small.train.images, whole.train.first(300).images)
    assert torch.equal(small.train.images[:100], load_splits("digits", train_images=100).train.images)
    for part in ("held_out", "test"):
        ours, full = getattr(small, part), getattr(whole, part)
        assert ours.name == "digits" and torch.equal(ours.images, full.images)


@pytest.mark.parametrize("count", [9, 1201])
def test_a_small_training_set_must_lie_within_the_data(count: int, shared_cache: None) -> None:
    with pytest.raises(DataError, match=f"train_images is {count}; digits has 1,200 training images in 10"):
        load_splits("digits", train_images=count)


def test_the_name_of_a_part_leads_back_to_its_source() -> None:
    names = ("digits", "digits[:300]", "cifar10-jpeg@16", "cifar10-jpeg@16[:2000]")
    assert [source_name(name) for name in names] == ["digits", "digits", "cifar10-jpeg", "cifar10-jpeg"]
    assert not default_augmentation("digits[:300]", (1, 8, 8)).flip
