from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trilemma import attacks, energies, noise, samplers
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import ConfigError
from trilemma.threat import Threat
from trilemma.walks import objectives
from trilemma.walks.steps import ascend
from trilemma.walks.walk import walk

COUNT = 8
SEEDS = noise.image_seeds(COUNT, torch.Generator().manual_seed(0))


def to_the_box(images, index):
    return images.clamp(0.0, 1.0)


def noisy_descent(clf, images, seeds, labels, stop_below: float | None, **options):
    """Descends E(x, y) with noise; an image has arrived once its energy is below ``stop_below``."""

    def arrived(values, logits, index):
        return values < stop_below

    with inner_loop(clf):
        return samplers.momentum(
            clf,
            images,
            objectives.joint_energy(clf, labels),
            12,
            step_size=0.02,
            noise_std=0.01,
            seeds=seeds,
            stop=None if stop_below is None else arrived,
            **options,
        )


def halfway(toy, clf) -> float:
    """An energy that images reach each at its own step: in the middle of the widest gap between those on the way.

    Not the energy of an image itself: with that, rounding decides whether the image has arrived.
    """
    path: list[dict[str, Any]] = []
    noisy_descent(clf, toy.images(COUNT), SEEDS, toy.labels(COUNT), None, callback=path.append)
    values = torch.stack([at["values"] for at in path]).flatten().sort().values
    middle = values[len(values) // 3 : -len(values) // 3]
    widest = int(middle.diff().argmax())
    return float(middle[widest] + middle[widest + 1]) / 2


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_neither_compaction_nor_batch_nor_order_changes_an_image_path(toy, network: str) -> None:
    clf = getattr(toy, network)().eval()
    images, labels = toy.images(COUNT), toy.labels(COUNT)
    limit = halfway(toy, clf)
    remaining: list[int] = []
    whole = noisy_descent(
        clf, images, SEEDS, labels, limit, callback=lambda at: remaining.append(len(at["index"]))
    )
    assert len(set(remaining)) > 1, "the images must arrive at different steps"

    alone = [
        noisy_descent(clf, images[i : i + 1], SEEDS[i : i + 1], labels[i : i + 1], limit)
        for i in range(COUNT)
    ]
    torch.testing.assert_close(torch.cat(alone), whole, atol=1e-5, rtol=0)

    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    shuffled = noisy_descent(clf, images[order], SEEDS[order], labels[order], limit)
    torch.testing.assert_close(shuffled, whole[order], atol=1e-5, rtol=0)


def test_an_arrived_image_stays_where_it_arrived_and_the_others_do_not_notice(toy) -> None:
    clf = toy.mlp()
    images, labels = toy.images(COUNT), toy.labels(COUNT)
    limit = halfway(toy, clf)
    path: list[torch.Tensor] = []
    noisy_descent(clf, images, SEEDS, labels, None, callback=lambda at: path.append(at["images"].clone()))
    walked = noisy_descent(clf, images, SEEDS, labels, limit)
    whole_path = torch.stack([images, *path])  # [steps + 1, N, C, H, W]
    for i in range(COUNT):
        values = energies.joint_energy(clf.logits(whole_path[:, i]), labels[i].expand(len(whole_path)))
        below = (values[:-1] < limit).nonzero()  # asked before each step
        at = int(below[0]) if len(below) else len(whole_path) - 1
        torch.testing.assert_close(walked[i], whole_path[at, i], atol=1e-5, rtol=0)


def test_momentum_leaves_the_batch_together_with_its_image(toy) -> None:
    clf = toy.mlp()
    kept = []

    def step(walkers, gradient):
        # a velocity that says whose it is
        own = walkers.state.get("velocity", walkers.index.view(-1, 1, 1, 1).float().expand_as(gradient))
        walkers.state["velocity"] = own
        kept.append((walkers.index.clone(), own[:, 0, 0, 0].long()))
        return walkers.images

    gone = iter([torch.tensor([1]), torch.tensor([0, 4]), torch.tensor([5])])

    def arrived(values, logits, index):
        return torch.isin(index, next(gone))

    with inner_loop(clf):
        walk(clf, toy.images(), objectives.marginal_energy(clf), step, to_the_box, 3, stop=arrived)
    assert [index.tolist() for index, _ in kept] == [[0, 2, 3, 4, 5], [2, 3, 5], [2, 3]]
    assert all(torch.equal(index, owner) for index, owner in kept)


def test_leaving_images_are_refused_while_batch_norm_is_in_train_mode(toy) -> None:
    clf = toy.conv().train()
    with (
        inner_loop(clf, "train"),
        pytest.raises(ConfigError, match="BatchNorm is in train mode; use mode 'eval'"),
    ):
        samplers.langevin(
            clf,
            toy.images(),
            objectives.marginal_energy(clf),
            2,
            noise_std=0.0,
            stop=lambda values, logits, index: values < 0,
        )


def test_a_walk_whose_images_have_all_arrived_ends(toy) -> None:
    clf = toy.mlp()
    calls: list[dict[str, Any]] = []
    with inner_loop(clf):
        walked = walk(
            clf,
            toy.images(),
            objectives.marginal_energy(clf),
            lambda walkers, gradient: walkers.images - gradient,
            to_the_box,
            50,
            stop=lambda values, logits, index: torch.ones_like(values, dtype=torch.bool),
            callback=calls.append,
        )
    assert torch.equal(walked, toy.images()) and not calls


def test_the_callback_sees_each_step(toy) -> None:
    clf = toy.mlp()
    seen: list[dict[str, Any]] = []
    walked = noisy_descent(clf, toy.images(COUNT), SEEDS, toy.labels(COUNT), None, callback=seen.append)
    assert [state["step"] for state in seen] == list(range(12))
    assert torch.equal(seen[-1]["images"], walked)
    assert not any(state[name].requires_grad for state in seen for name in ("images", "values"))
    before = energies.joint_energy(clf.logits(toy.images(COUNT)), toy.labels(COUNT))
    torch.testing.assert_close(seen[0]["values"], before.detach())


def test_no_steps_return_the_starts(toy) -> None:
    clf = toy.mlp()
    with inner_loop(clf):
        energy = objectives.marginal_energy(clf)
        assert torch.equal(samplers.langevin(clf, toy.images(), energy, 0, seeds=SEEDS[:6]), toy.images())


def test_only_input_gradients_are_computed(toy) -> None:
    clf = toy.conv().train()
    images = toy.images()
    asked = []

    def objective(batch, index):
        asked.append((batch.requires_grad, any(p.requires_grad for p in clf.parameters())))
        return objectives.marginal_energy(clf)(batch, index)

    with inner_loop(clf):
        samplers.proximal(clf, images, objective, 2)
    assert asked == [(True, False)] * 2
    assert all(p.grad is None and p.requires_grad for p in clf.parameters())
    assert not images.requires_grad and images.grad is None


def test_a_walk_works_where_gradients_are_switched_off(toy) -> None:
    clf = toy.mlp()
    with torch.no_grad(), inner_loop(clf):
        walked = samplers.proximal(clf, toy.images(), objectives.marginal_energy(clf), 2)
    assert not torch.equal(walked, toy.images())


def test_the_images_handed_in_are_not_written_to(toy) -> None:
    clf, images = toy.mlp(), toy.images(COUNT)
    noisy_descent(clf, images, SEEDS, toy.labels(COUNT), 0.0)
    assert torch.equal(images, toy.images(COUNT))


def test_images_that_a_step_rule_keeps_are_not_written_to(toy) -> None:
    clf, images = toy.mlp(), toy.images(COUNT)
    kept, clean = images - 1.0, images.clone()
    objective = objectives.cross_entropy(clf, toy.labels(COUNT))
    for project in (True, False):
        with inner_loop(clf):
            moved = ascend(
                clf, images, clean, Threat("linf", 0.1), objective, 1, 0.1,
                project=project, step_rule=lambda walkers, gradient: kept,
            )  # fmt: skip
        assert float(moved.min()) >= 0.0 and torch.equal(kept, images - 1.0)


def test_a_noisy_step_without_seeds_is_refused(toy) -> None:
    clf = toy.mlp()
    with inner_loop(clf), pytest.raises(ConfigError, match="needs seeds, one per image"):
        samplers.langevin(clf, toy.images(), objectives.marginal_energy(clf), 1)


class Cut(nn.Module):
    """A network whose logits do not know the images they came from."""

    def __init__(self, network: nn.Module, way: str) -> None:
        super().__init__()
        self.network, self.way = network, way

    def forward(self, images):
        if self.way == "no_grad":
            with torch.no_grad():
                return self.network(images)
        if self.way == "inference_mode":
            with torch.inference_mode():
                return self.network(images)
        logits = self.network(images.detach())
        return logits + torch.zeros(1, requires_grad=True) if self.way == "another leaf" else logits


@pytest.mark.parametrize("way", ["no_grad", "inference_mode", "detach", "another leaf"])
def test_a_network_cut_from_autograd_is_one_line_that_says_what_to_do(toy, way: str) -> None:
    clf, images = toy.mlp(), toy.images()
    clf.network = Cut(clf.network, way)
    labels = clf(images).argmax(1)
    with inner_loop(clf):
        oracle = Oracle(clf)
        asked: list[Callable[[], object]] = [
            lambda: attacks.pgd(clf, images, labels, Threat(), steps=1),
            lambda: attacks.apgd(clf, images, labels, Threat(), steps=1),
            lambda: attacks.fab(clf, images, labels, Threat(), steps=1, targets=None),
            lambda: samplers.proximal(clf, images, objectives.marginal_energy(clf), 1),
            lambda: oracle.gradient(images, energies.marginal_energy),
        ]
        for ask in asked:
            with pytest.raises(
                ConfigError, match=r"no gradient with respect to the image.*take .* out of"
            ) as caught:
                ask()
            assert "\n" not in str(caught.value)
    assert attacks.square(clf, images, labels, Threat(), queries=3).shape == images.shape


def test_channels_last_walks_the_same_path(toy) -> None:
    clf = toy.conv(shape=(3, 4, 4)).eval()
    images, labels = toy.images(COUNT, (3, 4, 4)), toy.labels(COUNT)
    plain = noisy_descent(clf, images, SEEDS, labels, None)
    clf.to(memory_format=torch.channels_last)
    last = noisy_descent(clf, images.to(memory_format=torch.channels_last), SEEDS, labels, None)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=0)
