from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from trilemma.samplers import ReplayBuffer

FRESH = -1.0


def fresh(labels):
    """A start that can be told: -1 in its first pixel, its class in the second."""
    images = torch.zeros(len(labels), 1, 1, 2)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = FRESH, labels.float()
    return images


def buffer(size: int = 100, reinit: float = 0.05) -> ReplayBuffer:
    """A buffer whose chains are numbered, so that a new start can be told from an old chain."""
    made = ReplayBuffer(fresh, size, 4, reinit)
    made.images[:, 0, 0, 0] = torch.arange(size)
    return made


def test_classes_have_equal_shares_at_the_beginning() -> None:
    made = ReplayBuffer(fresh, 100, 4, 0.05)
    assert made.labels.bincount().tolist() == [25] * 4
    assert torch.equal(made.images[:, 0, 0, 1], made.labels.float())
    assert len(made) == 100 and len(ReplayBuffer(fresh, 3000, 4, 0.0)) == 3000


def test_chains_are_drawn_uniformly_with_replacement() -> None:
    images, labels, places = buffer(reinit=0.0).draw(20_000, torch.Generator().manual_seed(0))
    counts = places.bincount(minlength=100).double()
    assert ((counts - 200) ** 2 / 200).sum() < 149  # chi square of 99 degrees of freedom, 0.1 % point
    assert torch.equal(images[:, 0, 0, 0], places.float())
    assert torch.equal(labels, places % 4)


def test_a_drawn_chain_starts_anew_with_the_given_probability_and_a_uniform_class() -> None:
    images, labels, _ = buffer(reinit=0.05).draw(20_000, torch.Generator().manual_seed(0))
    anew = images[:, 0, 0, 0] == FRESH
    assert abs(anew.float().mean() - 0.05) < 0.006
    assert torch.equal(images[:, 0, 0, 1][anew].long(), labels[anew])
    assert ((labels[anew].bincount(minlength=4) / anew.sum() - 0.25).abs() < 0.06).all()


def test_no_chain_or_every_chain_starts_anew_at_the_extremes() -> None:
    for reinit, share in ((0.0, 0.0), (1.0, 1.0)):
        images, _, _ = buffer(reinit=reinit).draw(500, torch.Generator().manual_seed(0))
        assert (images[:, 0, 0, 0] == FRESH).float().mean() == share


def test_drawing_does_not_change_the_buffer_and_writing_changes_the_drawn_places_only() -> None:
    made = buffer(reinit=1.0)
    before = made.images.clone(), made.labels.clone()
    images, labels, places = made.draw(10, torch.Generator().manual_seed(0))
    assert torch.equal(made.images, before[0]) and torch.equal(made.labels, before[1])
    made.write(places, images + 0.5, labels)
    untouched = torch.ones(100, dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(made.images[untouched], before[0][untouched])
    assert torch.equal(made.images[places[-1]], images[-1] + 0.5)
    assert made.labels[places[-1]] == labels[-1]


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_of_a_place_drawn_twice_the_last_chain_is_kept_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    made = ReplayBuffer(lambda labels: torch.zeros(len(labels), 3, 32, 32), 20, 4, 0.0)
    for _ in range(20):  # large enough for threads to race, were the writes left to them
        places = torch.randint(20, (128,), generator=generator)
        chains = torch.rand(128, 1, 1, 1, generator=generator).expand(-1, 3, 32, 32)
        classes = torch.randint(4, (128,), generator=generator)
        wanted, wanted_labels = made.images.clone(), made.labels.clone()
        for place, chain, label in zip(places, chains, classes, strict=True):
            wanted[place], wanted_labels[place] = chain, label
        made.write(places, chains, classes)
        assert torch.equal(made.images, wanted) and torch.equal(made.labels, wanted_labels)


def test_a_loaded_buffer_does_not_share_memory_with_the_saved_state() -> None:
    made, state = buffer(), buffer().state_dict()
    state = copy.deepcopy(state)
    state["images"] += 0.25
    made.load_state_dict(state)
    kept = state["images"].clone()
    made.write(torch.tensor([3]), torch.zeros(1, 1, 1, 2), torch.tensor([2]))
    assert torch.equal(state["images"], kept)
    assert made.labels[3] == 2 and made.images[4, 0, 0, 0] == 4.25
