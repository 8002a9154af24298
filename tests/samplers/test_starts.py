from __future__ import annotations

import copy

import pytest
import torch

from trilemma import noise
from trilemma.config.registry import STARTS
from trilemma.data.statistics import ClassPCA
from trilemma.errors import ConfigError
from trilemma.samplers.starts import TrainingStarts, make_start

SEEDS = noise.image_seeds(9, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", STARTS.rows())
def test_starts_are_images_that_belong_to_their_seed(toy, name: str) -> None:
    data, labels = toy.image_set(), toy.labels(9)
    starts = make_start(name, labels, SEEDS, (1, 4, 4), data, None)
    assert starts.shape == (9, 1, 4, 4) and starts.min() >= 0 and starts.max() <= 1
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = make_start(name, labels[order], SEEDS[order], (1, 4, 4), data, None)
    torch.testing.assert_close(shuffled, starts[order], atol=1e-6, rtol=0)
    assert len(starts.flatten(1).unique(dim=0)) > (3 if name == "data" else 8)


def test_data_starts_are_training_images_of_the_class_and_reach_all_of_them(toy) -> None:
    data = toy.image_set(per_class=4)
    labels = toy.labels(300)
    seeds = noise.image_seeds(300, torch.Generator().manual_seed(0))
    starts = make_start("data", labels, seeds, (1, 4, 4), data, None)
    everything = data.float_images().flatten(1)
    found = (starts.flatten(1)[:, None] == everything[None]).all(2)
    assert (found.sum(1) == 1).all()
    assert torch.equal(data.labels[found.int().argmax(1)], labels)
    assert found.any(0).all()


def test_class_mean_noise_is_centred_on_the_class(toy) -> None:
    data = toy.image_set()
    labels = torch.ones(2000, dtype=torch.int64)
    seeds = noise.image_seeds(2000, torch.Generator().manual_seed(0))
    starts = make_start("class-mean-noise", labels, seeds, (1, 4, 4), data, None)
    mean = data.float_images()[data.labels == 1].mean(0)
    middle = (mean > 0.4) & (mean < 0.6)  # elsewhere the clipping moves the mean
    torch.testing.assert_close(starts.mean(0)[middle], mean[middle], atol=0.03, rtol=0)


def test_stored_statistics_serve_where_the_data_are_not_at_hand(toy) -> None:
    data, labels = toy.image_set(), toy.labels(9)
    pca = ClassPCA.fit(data)
    for name in ("class-pca", "class-mean-noise"):
        stored = make_start(name, labels, SEEDS, (1, 4, 4), None, pca)
        assert torch.equal(stored, make_start(name, labels, SEEDS, (1, 4, 4), data, None))


@pytest.mark.parametrize(
    "name", ["class-pca", "class-gaussian", "class-mean-noise", "data", "phase-scrambled"]
)
def test_a_start_that_needs_data_says_so(toy, name: str) -> None:
    with pytest.raises(ConfigError, match=f"start: '{name}' needs .* pass data="):
        make_start(name, toy.labels(9), SEEDS, (1, 4, 4), None, None)


def test_an_unknown_start_names_the_nearest(toy) -> None:
    with pytest.raises(ConfigError, match=r"unknown start 'class-pcs'\. Did you mean 'class-pca'"):
        make_start("class-pcs", toy.labels(9), SEEDS, (1, 4, 4), None, None)


@pytest.mark.parametrize("name", STARTS.rows())
def test_training_starts_resume_exactly(toy, name: str) -> None:
    labels = toy.labels(9)
    starts = TrainingStarts(name, toy.image_set(), seed=5, device="cpu")
    starts(labels)
    state = copy.deepcopy(starts.state_dict())
    wanted = starts(labels)
    resumed = TrainingStarts(name, toy.image_set(), seed=5, device="cpu")
    first = resumed(labels)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(labels), wanted)
    assert not torch.equal(first, wanted)
