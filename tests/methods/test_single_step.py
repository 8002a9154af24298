"""How the single-step methods move their images, and what their penalties train through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trilemma
from trilemma import noise
from trilemma.config.recipe import build_config
from trilemma.errors import ConfigError
from trilemma.methods import MethodState, Points
from trilemma.methods.inner import fresh_seeds

EPSILON = 0.06
THREAT = trilemma.Threat("linf", EPSILON)


def points_of(toy, method, count: int = 40, seed: int = 0) -> tuple[Any, Any, Any]:
    """Points, the classifier, and the state that made them."""
    clf = toy.mlp()
    state = method.init_state(clf, toy.image_set(), seed)
    return method.points(clf, toy.batch(count), state), clf, state


def loss_gradient(clf, images: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross-entropy."""
    images = images.detach().clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(clf(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


def test_fgsm_steps_the_radius_from_the_image_itself(toy) -> None:
    at, clf, state = points_of(toy, trilemma.methods.create("fgsm", THREAT))
    signs = loss_gradient(clf, at.clean, at.labels).sign()
    torch.testing.assert_close(at.adversarial, (at.clean + EPSILON * signs).clamp(0, 1), atol=1e-6, rtol=0)
    assert torch.equal(state.generator.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize(("name", "options"), [("fgsm-rs", {}), ("aaer", {}), ("aaer", {"base": "n-fgsm"})])
def test_a_step_from_noise_is_the_published_one(toy, name: str, options: dict[str, Any]) -> None:
    """fgsm-rs: U(-eps, eps), 5/4 eps, projected; n-fgsm: U(-2 eps, 2 eps), eps, box only."""
    strong = bool(options)
    scale, step = (2, EPSILON) if strong else (1, 1.25 * EPSILON)
    at, clf, state = points_of(toy, trilemma.methods.create(name, THREAT, **options))
    state.generator.manual_seed(0)
    seeds = noise.derive(fresh_seeds(state, at.clean), 0)
    start = (at.clean + scale * EPSILON * (2 * noise.uniform(seeds, 0, (1, 4, 4)) - 1)).clamp(0, 1)
    torch.testing.assert_close(at.extra["start"], start)
    moved = start + step * loss_gradient(clf, start, at.labels).sign()
    if not strong:
        moved = at.clean + (moved - at.clean).clamp(-EPSILON, EPSILON)
    torch.testing.assert_close(at.adversarial, moved.clamp(0, 1), atol=1e-6, rtol=0)
    reach = (at.adversarial - at.clean).abs().max()
    assert (reach > 1.5 * EPSILON) if strong else (reach <= EPSILON + 1e-6)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [("fgsm", {}, "8/255"), ("fgsm-rs", {}, "2/51"), ("n-fgsm", {}, "8/255"), ("aaer", {}, "2/51"),
     ("aaer", {"base": "n-fgsm"}, "8/255")],
)  # fmt: skip
def test_one_step_of_the_published_length_in_train_mode(
    name: str, options: dict[str, Any], size: str
) -> None:
    method = trilemma.methods.create(name, trilemma.Threat("linf", "8/255"), **options)
    assert (method.attack.steps, method.attack.step_size) == (1, size)  # 10/255 = 2/51
    assert method.options.attack_mode == "train" and method.options.single_step


# --- free-at --------------------------------------------------------------------------------------------


def replay(method, clf, state, batch) -> tuple[Any, Tensor]:
    """One replay without its weight step: the points, and the gradient of the loss at x*."""
    at = method.points(clf, batch, state)
    step = method.terms(clf, at, MethodState(0))
    step.loss.backward()
    method.after_backward(at, state, step)
    return at, at.adversarial.grad


def test_the_free_perturbation_starts_at_zero_and_follows_its_formula_across_batches(toy) -> None:
    method, clf = trilemma.methods.create("free-at", THREAT), toy.mlp()
    state = method.init_state(clf, toy.image_set(), 0)
    first = toy.batch(8)
    other = trilemma.Batch(
        toy.images(8, seed=7).round(), toy.labels(8), {}
    )  # black and white: the box always binds
    delta = np.zeros((8, 1, 4, 4))
    for batch in (first, first, first, other, other, first):
        x = batch.images.double().numpy()
        at, gradient = replay(method, clf, state, batch)
        np.testing.assert_allclose(at.adversarial.detach(), np.clip(x + delta, 0, 1), atol=1e-6)
        delta = np.clip(delta + EPSILON * np.sign(gradient.numpy()), -EPSILON, EPSILON)
        delta = np.clip(x + delta, 0, 1) - x
        np.testing.assert_allclose(state.extra["delta"], delta, atol=1e-6)
    assert np.abs(delta).max() > 0.9 * EPSILON


def test_the_free_perturbation_keeps_to_a_euclidean_ball(toy) -> None:
    threat = trilemma.Threat("l2", 0.3)
    method, clf = trilemma.methods.create("free-at", threat), toy.mlp()
    state, batch = method.init_state(clf, toy.image_set(), 0), toy.batch(8)
    _, gradient = replay(method, clf, state, batch)
    step = 0.3 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(state.extra["delta"], (batch.images + step).clamp(0, 1) - batch.images)
    for _ in range(3):
        at, _ = replay(method, clf, state, batch)
        assert threat.contains(at.adversarial, batch.images).all()


def test_a_batch_of_another_size_starts_the_free_perturbation_anew(toy) -> None:
    method, clf = trilemma.methods.create("free-at", THREAT), toy.mlp()
    state = method.init_state(clf, toy.image_set(), 0)
    replay(method, clf, state, toy.batch(8))
    at, _ = replay(method, clf, state, toy.batch(5))
    assert torch.equal(at.adversarial.detach(), at.clean)
    assert state.extra["delta"].shape == at.clean.shape


def test_the_free_gradient_is_the_weight_steps_own_under_sharpness_aware_updates(toy) -> None:
    """Both passes leave one gradient in x*, that of the pass whose weight gradient is applied."""
    from trilemma.updates.updates import sam

    method, clf = trilemma.methods.create("free-at", THREAT), toy.mlp()
    state = method.init_state(clf, toy.image_set(), 0)
    at: Any = method.points(clf, toy.batch(8), state)
    optimiser, applied = torch.optim.SGD(clf.parameters(), lr=0.0), []

    def compute():
        step = method.terms(clf, at, MethodState(0))
        applied.append(torch.autograd.grad(step.loss, at.adversarial, retain_graph=True)[0])
        return step

    sam(compute, optimiser, lambda: None, clf, 2.0)
    assert not torch.allclose(applied[0], applied[1])
    torch.testing.assert_close(at.adversarial.grad, applied[1])


def test_free_training_has_no_attack_to_set() -> None:
    tree = {"network": "small-resnet", "method": "free-at", "threat": {}}
    config = build_config(tree)
    assert config.attack.steps is None and config.method.repeats == 8
    with pytest.raises(ConfigError, match="attack: method 'free-at' has no attack"):
        build_config({**tree, "attack": {"steps": 10}})
    with pytest.raises(ConfigError, match="'free-at' has no attack"):
        trilemma.methods.create("free-at", THREAT, attack={"steps": 10})
    with pytest.raises(ConfigError, match="attack_mode"):
        trilemma.methods.create("free-at", THREAT, attack_mode="eval")


# --- aaer -----------------------------------------------------------------------------------------------


def mixed(toy, clf, count: int = 24) -> tuple[Any, Tensor]:
    """Points with abnormal and normal examples, and which are abnormal."""
    at = Points(
        toy.images(count, seed=0),
        toy.labels(count),
        toy.images(count, seed=1),
        extra={"start": toy.images(count, seed=2)},
    )
    loss = [
        torch.nn.functional.cross_entropy(clf(x), at.labels, reduction="none")
        for x in (at.extra["start"], at.adversarial)
    ]
    abnormal = loss[0] > loss[1]
    assert 0 < abnormal.sum() < count
    return at, abnormal


def penalty_gradient(toy, clf, at: Any, **weights: Any) -> Any:
    """At x*, of the term alone."""
    images = at.adversarial.detach().clone().requires_grad_()
    at = Points(at.clean, at.labels, images, extra=at.extra)
    with_it, without = (
        trilemma.methods.create("aaer", THREAT, **(weights | {"weight": weight}))
        .terms(clf, at, MethodState(0))
        .loss
        for weight in (1.0, 0.0)
    )
    return torch.autograd.grad(with_it - without, images)[0]


def test_the_penalty_trains_through_the_movement_of_abnormal_examples_alone(toy) -> None:
    clf = toy.mlp()
    at, abnormal = mixed(toy, clf)
    assert (
        trilemma.methods.create("aaer", THREAT, gap=0.0).terms(clf, at, MethodState(0)).metrics["penalty"] > 0
    )
    gradient = penalty_gradient(toy, clf, at, gap=2.5, spread=1.5)
    images = at.adversarial.detach().clone().requires_grad_()
    moved = (clf(images) - clf(at.extra["start"]).detach()).square().sum(1)
    share = abnormal.float().mean()
    (wanted,) = torch.autograd.grad(1.5 * share * moved[abnormal].mean(), images)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert (gradient[abnormal].flatten(1).abs().sum(1) > 0).all() and not gradient[~abnormal].any()
    assert not penalty_gradient(toy, clf, at, gap=2.5, spread=0.0).any(), "the fall of the loss is a constant"


@pytest.mark.parametrize("side", ["all", "none"])
def test_without_both_groups_the_loss_is_that_of_the_base(toy, side: str) -> None:
    clf = toy.mlp()
    at, abnormal = mixed(toy, clf)
    keep = abnormal if side == "all" else ~abnormal
    one_group = Points(
        at.clean[keep], at.labels[keep], at.adversarial[keep], extra={"start": at.extra["start"][keep]}
    )
    method = trilemma.methods.create("aaer", THREAT)
    step = method.terms(clf, one_group, MethodState(0))
    base = torch.nn.functional.cross_entropy(clf(one_group.adversarial), one_group.labels)
    torch.testing.assert_close(step.loss, base)
    assert step.metrics["abnormal"] == (side == "all") and step.metrics["penalty"] == 0


def test_the_forward_of_the_start_moves_no_statistics(toy) -> None:
    buffers = []
    for name in ("n-fgsm", "aaer"):
        clf = toy.conv().train()
        at, _ = mixed(toy, toy.mlp())
        trilemma.methods.create(name, THREAT).terms(clf, at, MethodState(0))
        buffers.append([buffer.clone() for buffer in clf.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*buffers, strict=True))


def test_the_weights_are_the_bases_own_unless_given() -> None:
    chosen = trilemma.methods.create("aaer", THREAT, base="n-fgsm", gap=0.5).options
    assert (chosen.weight, chosen.gap, chosen.spread) == (1.0, 0.5, 0.15)
    saved = build_config({"network": "small-resnet", "method": "aaer", "threat": {}}).model_dump()["method"]
    assert (saved["weight"], saved["gap"], saved["spread"]) == (1.0, 2.5, 1.5)


# --- the regulariser at the random start ------------------------------------------------------------------


def test_the_regulariser_can_compare_with_the_random_start(toy) -> None:
    clf = toy.mlp()
    at, abnormal = mixed(toy, clf)
    der = {"name": "der", "beta": 2.0, "reference": "start", "average": "batch"}
    base, step = (
        trilemma.methods.create("n-fgsm", THREAT, regulariser=regulariser).terms(clf, at, MethodState(0))
        for regulariser in (None, der)
    )
    f, g = toy.logits64(clf, at.extra["start"]), toy.logits64(clf, at.adversarial)
    rows, y = np.arange(24), at.labels.numpy()
    shift = np.hypot(np.log(np.exp(g).sum(1)) - np.log(np.exp(f).sum(1)), g[rows, y] - f[rows, y])
    wanted = 2 * (shift * abnormal.numpy()).sum() / 24
    np.testing.assert_allclose((step.loss - base.loss).item(), wanted, atol=1e-5)
    assert step.clean is None, "the start is no clean image"


def test_a_method_without_a_random_start_cannot_be_compared_with_it() -> None:
    der = {"name": "der", "reference": "start"}
    tree = {"network": "small-resnet", "threat": {}, "regulariser": der}
    for name in ("pgd-at", "fgsm", "free-at"):
        with pytest.raises(
            ConfigError, match=rf"regulariser.reference: method '{name}' stores no random start"
        ):
            build_config({**tree, "method": name})
        with pytest.raises(ConfigError, match="stores no random start"):
            trilemma.methods.create(name, THREAT, regulariser=der)
    assert build_config({**tree, "method": "fgsm-rs"}).regulariser
