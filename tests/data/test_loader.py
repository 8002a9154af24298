"""The loader: resuming and sharing change nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trilemma.data import Augmentation, ImageSet, Loader
from trilemma.errors import DataError

CROP = Augmentation(crop=1, flip=True)


def test_every_image_once_per_epoch_as_float(small_set: ImageSet) -> None:
    loader = Loader(small_set, 8, drop_last=False)
    batches = list(loader.epoch(0))
    assert [len(batch.labels) for batch in batches] == [8, 8, 8, 6]
    assert loader.steps_per_epoch == 4
    places = torch.cat([batch.indices for batch in batches if batch.indices is not None])
    assert sorted(places.tolist()) == list(range(30))
    for batch in batches:
        assert batch.indices is not None
        assert batch.images.is_contiguous()
        assert torch.equal(batch.images, small_set.float_images(batch.indices))
        assert torch.equal(batch.labels, small_set.labels[batch.indices])


def test_drop_last_leaves_out_the_rest(small_set: ImageSet) -> None:
    assert Loader(small_set, 8).steps_per_epoch == len(list(Loader(small_set, 8).epoch(0))) == 3


def test_resuming_at_a_step_is_bit_for_bit(small_set: ImageSet) -> None:
    whole = list(Loader(small_set, 4, augmentation=CROP, seed=5).epoch(2))
    resumed = list(Loader(small_set, 4, augmentation=CROP, seed=5).epoch(2, first_step=3))
    assert len(resumed) == len(whole) - 3
    for expected, found in zip(whole[3:], resumed, strict=True):
        assert torch.equal(expected.images, found.images)
        assert torch.equal(expected.labels, found.labels)


def test_epochs_and_seeds_differ(small_set: ImageSet) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(k) for batch in Loader(small_set, 6, seed=seed).epoch(epoch) for k in batch.indices]  # type: ignore[union-attr]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_very_batches_of_one_process(small_set: ImageSet, world_size: int) -> None:
    alone = list(Loader(small_set, 8, augmentation=CROP, drop_last=False).epoch(1))
    shares = [
        list(
            Loader(small_set, 8, augmentation=CROP, drop_last=False, rank=rank, world_size=world_size).epoch(
                1
            )
        )
        for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        assert torch.equal(batch.images, torch.cat([share[step].images for share in shares]))
        assert torch.equal(batch.labels, torch.cat([share[step].labels for share in shares]))


def test_unaugmented_view_is_the_image_itself_without_augmentation(small_set: ImageSet) -> None:
    plain = next(Loader(small_set, 8).epoch(0))
    assert plain.views["unaugmented"] is plain.images
    augmented = next(Loader(small_set, 8, augmentation=CROP).epoch(0))
    assert torch.equal(augmented.views["unaugmented"], plain.images)
    assert not torch.equal(augmented.images, plain.images)


def test_the_basic_view_lacks_what_comes_after_crop_and_flip(small_set: ImageSet) -> None:
    basic = next(Loader(small_set, 8, augmentation=CROP).epoch(0))
    assert basic.views["basic"] is basic.images
    whole = dataclasses.replace(CROP, cutout=2, policy="autoaugment")
    more = next(Loader(small_set, 8, augmentation=whole).epoch(0))
    assert torch.equal(more.views["basic"], basic.images) and not torch.equal(more.images, basic.images)
    assert next(Loader(small_set, 8).epoch(0)).views.keys() == {"unaugmented", "basic"}


def test_without_shuffle_the_order_is_the_sets_own(small_set: ImageSet) -> None:
    batch = next(Loader(small_set, 5, shuffle=False).epoch(9))
    assert batch.indices is not None
    assert batch.indices.tolist() == [0, 1, 2, 3, 4]


def test_float_sets_are_loaded_as_they_are(small_set: ImageSet) -> None:
    images = torch.rand(30, 1, 3, 4)
    batch = next(Loader(dataclasses.replace(small_set, images=images), 5, shuffle=False).epoch(0))
    assert torch.equal(batch.images, images[:5])


def test_impossible_batches_are_refused(small_set: ImageSet) -> None:
    with pytest.raises(DataError, match=r"batch size 31 is larger than the 30 train images of small"):
        Loader(small_set, 31)
    with pytest.raises(DataError, match="cannot be shared equally by 3 processes"):
        Loader(small_set, 8, world_size=3)


@pytest.mark.parametrize("first_step", range(9))
def test_a_batch_is_handed_out_as_often_as_asked_and_resumed_within(
    small_set: ImageSet, first_step: int
) -> None:
    once, thrice = (Loader(small_set, 8, augmentation=CROP, seed=5, repeats=count) for count in (1, 3))
    assert thrice.steps_per_epoch == 3 * once.steps_per_epoch == 9
    wanted = [batch for batch in once.epoch(2) for _ in range(3)][first_step:]
    found = list(thrice.epoch(2, first_step))
    assert len(found) == 9 - first_step
    for expected, batch in zip(wanted, found, strict=True):
        assert torch.equal(expected.images, batch.images) and torch.equal(expected.labels, batch.labels)
