"""Seeds and saved states: the same start gives the same steps, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

import trilemma
from trilemma.config.registry import METHODS
from trilemma.methods import Method, MethodState
from trilemma.training.checkpoint import load_state, save_state

CHAIN = {"buffer_size": 12, "steps": 2, "reinit": 0.5}
WITHOUT_CHANCE = {"standard", "fgsm", "free-at", "elle-a"}  # the weight of elle-a's random term starts at 0


def build(name: str):
    kind = METHODS.options(name)
    return trilemma.methods.create(
        name,
        trilemma.Threat("linf", 0.1) if kind.uses_attack else None,
        sampler=CHAIN if kind.uses_sampler else None,
    )


def one_step(toy, method: Method, clf: trilemma.Classifier, state: MethodState) -> torch.Tensor:
    """The loss of a whole step but for the weights, which stay."""
    points = method.points(clf, toy.batch(), state)
    step = method.terms(clf, points, MethodState(0))
    step.loss.backward()
    method.after_backward(points, state, step)
    clf.zero_grad()
    return step.loss.detach()


@pytest.mark.parametrize("name", METHODS.names())
def test_the_same_seed_gives_the_same_losses(toy, name: str) -> None:
    clf, method = toy.mlp(), build(name)

    def losses(seed: int):
        state = method.init_state(clf, toy.image_set(), seed)
        return torch.stack([one_step(toy, method, clf, state) for _ in range(3)])

    first = losses(0)
    assert torch.equal(losses(0), first)
    if name not in WITHOUT_CHANCE:
        assert not torch.equal(losses(1), first)
        assert len(first.unique()) == 3


@pytest.mark.parametrize("name", METHODS.names())
def test_a_saved_state_gives_the_same_next_steps(toy, name: str, tmp_path) -> None:
    clf, method = toy.mlp(), build(name)
    state = method.init_state(clf, toy.image_set(), 0)
    for _ in range(4):
        one_step(toy, method, clf, state)
    state.extra["memory"] = torch.tensor([1.5])
    save_state(tmp_path / "state", state.state_dict())
    kept = copy.deepcopy(state.state_dict())
    wanted = [one_step(toy, method, clf, state) for _ in range(3)]
    for saved in (load_state(tmp_path / "state"), kept):
        fresh = method.init_state(clf, toy.image_set(), 0)
        for _ in range(3):  # as after a rollback: everything has moved on
            one_step(toy, method, clf, fresh)
        fresh.load_state_dict(saved)
        assert torch.equal(fresh.extra["memory"], torch.tensor([1.5]))
        again = [one_step(toy, method, clf, fresh) for _ in range(3)]
        assert all(torch.equal(one, other) for one, other in zip(wanted, again, strict=True))


def test_a_state_taken_over_is_not_changed_by_later_steps(toy) -> None:
    clf, method = toy.mlp(), build("eb-jdat")
    saved = copy.deepcopy(method.init_state(clf, toy.image_set(), 0).state_dict())
    before = saved["buffer"]["images"].clone()
    state = method.init_state(clf, toy.image_set(), 1)
    state.load_state_dict(saved)
    method.loss(clf, toy.batch(), state)
    assert torch.equal(saved["buffer"]["images"], before)
    assert not torch.equal(state.buffer.images, before)
