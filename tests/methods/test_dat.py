"""dat: its loss in NumPy, its curriculum in plain Python, its walks, and the BatchNorm it leaves alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]

import trilemma
from trilemma import energies, noise
from trilemma.config.recipe import build_config
from trilemma.data.augmentation import Augmentation
from trilemma.methods import MethodState, Points
from trilemma.methods.base import Step
from trilemma.methods.dat import area_under_curve
from trilemma.methods.inner import fresh_seeds
from trilemma.training.checkpoint import load_state, save_state

THREAT = trilemma.Threat("l2", 0.5)


def build(threat: trilemma.Threat = THREAT, **arguments: Any) -> Any:
    return trilemma.methods.create("dat", threat, **arguments)


def at_step(method: Any, clf: Any, toy: Any, steps: int, seed: int = 0) -> Any:
    state = method.init_state(clf, toy.image_set(), seed)
    state.extra["steps"] = torch.tensor(steps)
    return state


def fixed(toy: Any) -> Any:
    """Other images in every role; ``clean`` must not matter."""
    names = ("clean", "adversarial", "generated", "data")
    images = {name: toy.images(seed=k) for k, name in enumerate(names)}
    return Points(labels=toy.labels(), extra={"steps": torch.tensor(3.0)}, **images)


def test_the_loss_is_the_formula(toy) -> None:
    clf, at = toy.mlp(), fixed(toy)
    starred, real, negative = (toy.logits64(clf, x) for x in (at.adversarial, at.data, at.generated))
    rows, y = np.arange(6), at.labels.numpy()
    robust = (np.log(np.exp(starred).sum(1)) - starred[rows, y]).mean()
    # s = logsumexp f, so sigmoid(s) = z / (1 + z) with z = sum_k exp f_k
    z_real, z_negative = np.exp(real).sum(1), np.exp(negative).sum(1)
    to_real = -np.log(z_real / (1 + z_real)).mean()
    to_outside = -np.log(1 / (1 + z_negative)).mean()
    step = build().terms(clf, at, MethodState(0))
    np.testing.assert_allclose(step.loss.item(), robust + 0.5 * to_real + 0.5 * to_outside, rtol=1e-5)
    wanted = {"robust": robust, "real": to_real, "outside": to_outside}
    wanted["auc"] = mannwhitneyu(real[rows, y], negative[rows, y]).statistic / 36
    for name, value in wanted.items():
        np.testing.assert_allclose(step.metrics[name], value, rtol=1e-5)
    assert step.metrics["steps"] == 3
    assert step.clean is None and torch.equal(step.generated.images, at.generated)


def test_the_loss_stays_finite_at_large_energies(toy) -> None:
    clf, at = toy.mlp(), fixed(toy)
    with torch.no_grad():
        clf.network[3].weight.mul_(1e4)
    step = build().terms(clf, at, MethodState(0))
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in clf.parameters())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 5), (128, 128)])
def test_the_area_under_the_curve_is_the_u_statistic(sizes: tuple[int, int], ties: bool) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    positive, negative = (
        torch.randn(n, generator=generator) + shift for n, shift in zip(sizes, (0.5, 0), strict=True)
    )
    if ties:
        positive, negative = positive.round(), negative.round()
    found = area_under_curve(positive, negative)
    wanted = mannwhitneyu(positive.numpy(), negative.numpy()).statistic / (sizes[0] * sizes[1])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert area_under_curve(torch.ones(4), torch.ones(3)) == 0.5


def told(method: Any, state: Any, auc: float) -> None:
    """One step whose AUC was ``auc``."""
    step = Step(torch.tensor(0.0), metrics={"auc": torch.tensor(auc)})
    method.after_backward(Points(torch.zeros(1, 1, 4, 4), torch.zeros(1).long()), state, step)


def test_the_curriculum_is_the_plain_one(toy, tmp_path) -> None:
    limit, threshold = 5, 0.7
    method = build(sampler={"steps": limit}, threshold=threshold)
    state = method.init_state(toy.mlp(), toy.image_set(), 0)
    values = torch.rand(150, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.4
    steps, window, path = 0, [], []
    for number, auc in enumerate(values.tolist()):
        told(method, state, auc)
        window.append(auc)
        if len(window) >= 8 and sum(window[-8:]) / 8 >= threshold:
            steps, window = min(limit, steps + 1), []
        path.append(steps)
        assert int(state.extra["steps"]) == steps
        if number % 13 == 5:  # saved and taken up in the middle of a window
            save_state(tmp_path / "state", state.state_dict())
            state = method.init_state(toy.mlp(), toy.image_set(), 0)
            state.load_state_dict(load_state(tmp_path / "state"))
    assert path[-1] == limit and path.index(1) >= 7, "the sequence must grow, and reach its limit"
    assert len(set(path)) == limit + 1


def test_a_mean_at_the_threshold_is_enough_and_the_window_is_emptied(toy) -> None:
    method = build(threshold=0.75)
    state = method.init_state(toy.mlp(), toy.image_set(), 0)
    reached = []
    for _ in range(24):
        told(method, state, 0.75)
        reached.append(int(state.extra["steps"]))
    assert reached == [0] * 7 + [1] * 8 + [2] * 8 + [3]


def test_no_steps_show_the_images_from_elsewhere_themselves(toy) -> None:
    method, clf, batch = build(), toy.mlp(), toy.batch()
    state = method.init_state(clf, toy.image_set(), 0)
    points = method.points(clf, batch, state)
    state.generator.manual_seed(0)
    seeds = noise.derive(fresh_seeds(state, batch.images), 0)
    assert torch.equal(points.generated, state.outside(seeds))
    assert points.extra["steps"] == 0


def test_each_step_has_the_given_length_and_raises_the_logit_of_the_real_images_class(toy) -> None:
    method, clf = build(), toy.mlp()
    walks = [method.points(clf, toy.batch(), at_step(method, clf, toy, k)) for k in range(6)]
    for shorter, longer in pairwise(walks):
        move = longer.generated - shorter.generated
        inside = ((longer.generated > 0) & (longer.generated < 1)).flatten(1).all(1)
        length = move.flatten(1).norm(dim=1)
        assert (length <= 0.1 + 1e-6).all()
        torch.testing.assert_close(length[inside], torch.full_like(length[inside], 0.1), atol=1e-6, rtol=0)
        logits = [clf(p.generated)[torch.arange(6), p.labels] for p in (shorter, longer)]
        assert (logits[1] > logits[0]).all()
    # the first step is the formula
    start = walks[0].generated.clone().requires_grad_()
    picked = clf(start)[torch.arange(6), toy.labels()].sum()
    (gradient,) = torch.autograd.grad(picked, start)
    unit = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(
        walks[1].generated, (start + 0.1 * unit).detach().clamp(0, 1), atol=1e-6, rtol=0
    )
    assert walks[5].generated.min() >= 0 and walks[5].generated.max() <= 1
    assert torch.equal(walks[5].generated_labels, toy.labels())


def test_the_attack_begins_at_the_image_of_its_branch_and_climbs_the_cross_entropy(toy) -> None:
    clf, batch = toy.mlp(), toy.batch()
    for threat in (THREAT, trilemma.Threat("linf", 0.1)):
        method = build(threat)
        assert method.attack.steps == 10 and float(eval(method.attack.step_size)) == threat.epsilon / 5
        points = method.points(clf, batch, method.init_state(clf, toy.image_set(), 0))
        wanted = trilemma.attacks.pgd(
            clf, batch.images, batch.labels, threat, 10, threat.epsilon / 5, random_start=False
        )
        torch.testing.assert_close(points.adversarial, wanted, atol=1e-6, rtol=0)
        after, before = (
            energies.cross_entropy(clf(x), batch.labels) for x in (points.adversarial, batch.images)
        )
        assert (after > before).all()


def test_the_two_branches_see_their_own_view(toy) -> None:
    basic = toy.images(seed=9)
    batch = trilemma.Batch(toy.images(), toy.labels(), {"basic": basic})
    method, clf = build(), toy.mlp()
    points = method.points(clf, batch, method.init_state(clf, toy.image_set(), 0))
    assert points.data is basic and points.clean is batch.images
    other = trilemma.Batch(toy.images(seed=4), toy.labels(), {"basic": basic})
    moved = method.points(clf, other, method.init_state(clf, toy.image_set(), 0))
    terms = [method.terms(clf, at, MethodState(0)).metrics for at in (points, moved)]
    assert terms[0]["real"] == terms[1]["real"] and terms[0]["robust"] != terms[1]["robust"]


def test_batch_norm_keeps_its_statistics_and_its_weights_train(toy) -> None:
    """A whole step, walks and DER included, with the running statistics used and not moved."""
    clf = toy.conv().train()
    before = [buffer.clone() for buffer in clf.buffers()]
    method = build(regulariser={"name": "der"})
    state = method.init_state(clf, toy.image_set(), 0)
    state.extra["steps"] = torch.tensor(2)
    points = method.points(clf, toy.batch(), state)
    step = method.terms(clf, points, MethodState(0))
    step.loss.backward()
    method.after_backward(points, state, step)
    assert all(torch.equal(a, b) for a, b in zip(clf.buffers(), before, strict=True))
    assert all(module.training for module in clf.modules())
    norm = clf.network[1]
    assert norm.weight.grad.abs().sum() > 0 and norm.bias.grad.abs().sum() > 0
    clf.eval()
    for seen in (step.clean, step.adversarial, step.generated):
        torch.testing.assert_close(clf(seen.images), seen.logits)


def test_a_state_saved_in_the_middle_gives_the_same_next_step(toy, tmp_path) -> None:
    method, clf = build(threshold=0.0, sampler={"steps": 4}), toy.mlp()

    def step(state: Any) -> Any:
        points = method.points(clf, toy.batch(), state)
        done = method.terms(clf, points, MethodState(0))
        method.after_backward(points, state, done)
        return done

    state = method.init_state(clf, toy.image_set(), 0)
    for _ in range(11):
        step(state)
    assert int(state.extra["steps"]) == 1 and len(state.extra["window"]) == 3
    save_state(tmp_path / "state", state.state_dict())
    other = method.init_state(clf, toy.image_set(), 5)
    other.load_state_dict(load_state(tmp_path / "state"))
    for _ in range(7):
        one, again = step(state), step(other)
        assert torch.equal(one.loss, again.loss) and torch.equal(one.generated.images, again.generated.images)
    assert int(state.extra["steps"]) == int(other.extra["steps"]) == 2


def test_what_stands_in_and_what_is_fixed_is_said(toy) -> None:
    def warnings(training: dict[str, Any], network: Any = "small-resnet", **method: Any) -> list[str]:
        tree = {"network": network, "threat": {"norm": "l2", "radius": 0.5}, "training": training}
        return build_config(tree | {"method": {"name": "dat", **method}}).warnings

    whole = {"start": "runs/x", "reestimate_bn": False}
    (only,) = warnings(whole)
    assert only.startswith("method.outside: phase-scrambled training images replace natural images")
    assert warnings(whole, outside="photos") == []
    assert [line.partition(":")[0] for line in warnings({}, outside="photos")] == [
        "training.start",
        "training.reestimate_bn",
    ]
    assert warnings({}, {"name": "small-resnet", "norm": "group"}, outside="photos") == []


def test_the_basic_view_is_crop_and_flip_of_the_same_image() -> None:
    images, seeds = torch.rand(8, 3, 8, 8), torch.arange(8)
    whole = Augmentation(1, True, 4, "autoaugment")
    assert torch.equal(whole.basic(images, seeds), Augmentation(1, True).apply(images, seeds))
    assert torch.equal(whole.rest(whole.basic(images, seeds), seeds), whole.apply(images, seeds))
    assert not torch.equal(whole.apply(images, seeds), whole.basic(images, seeds))
