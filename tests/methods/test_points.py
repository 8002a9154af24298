"""What each method trains on: perturbations, chains, data views."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import trilemma
from trilemma import energies, noise
from trilemma.methods import MethodState
from trilemma.methods.inner import fresh_seeds

CHAIN = {"buffer_size": 12, "steps": 2}


def make(
    toy, name: str, clf=None, count: int = 6, radius=0.1, seed: int = 0, **arguments: Any
) -> tuple[Any, Any]:
    """Points and state of one step; ``clf`` is the MLP by default."""
    clf = clf or toy.mlp()
    if name in ("sada-jem", "jeat", "eb-jdat"):
        arguments.setdefault("sampler", CHAIN)
    threat = None if name in ("standard", "sada-jem") else trilemma.Threat("linf", radius)
    method = trilemma.methods.create(name, threat, **arguments)
    state = method.init_state(clf, toy.image_set(), seed)
    return method.points(clf, toy.batch(count), state), state


def test_n_fgsm_steps_the_radius_from_strong_noise_without_projection(toy) -> None:
    clf, batch, epsilon = toy.mlp(), toy.batch(40), 0.06
    points, state = make(toy, "n-fgsm", clf, 40, epsilon)
    offset = (points.adversarial - batch.images).abs()
    assert offset.max() <= 3 * epsilon + 1e-6
    assert (offset > 2 * epsilon).any() and (offset > epsilon).float().mean() > 0.2
    assert points.adversarial.min() >= 0 and points.adversarial.max() <= 1
    # the formula, with the noise of the same seeds
    state.generator.manual_seed(0)
    seeds = noise.derive(fresh_seeds(state, batch.images), 0)
    noisy = (
        (batch.images + 2 * epsilon * (2 * noise.uniform(seeds, 0, (1, 4, 4)) - 1))
        .clamp(0, 1)
        .requires_grad_()
    )
    loss = torch.nn.functional.cross_entropy(clf(noisy), batch.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, noisy)
    wanted = (noisy + epsilon * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(points.adversarial, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["pgd-at", "trades", "jeat", "eb-jdat"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_other_methods_keep_to_the_ball(toy, name: str, norm: str) -> None:
    threat = trilemma.Threat(norm, 0.1 if norm == "linf" else 0.5)
    method = trilemma.methods.create(name, threat, sampler=CHAIN if "j" in name else None)
    clf, batch = toy.mlp(), toy.batch()
    points: Any = method.points(clf, batch, method.init_state(clf, toy.image_set(), 0))
    assert threat.contains(points.adversarial, batch.images).all()
    assert (points.adversarial != batch.images).flatten(1).any(1).all()


def test_steps_and_sizes_are_the_published_ones(toy) -> None:
    wanted = {"pgd-at": (10, "2/255"), "trades": (10, "2/255"), "n-fgsm": (1, "8/255"), "jeat": (10, "2/255"),
              "eb-jdat": (5, "2/255")}  # fmt: skip
    for name, (steps, step_size) in wanted.items():
        method = trilemma.methods.create(name, trilemma.Threat("linf", "8/255"))
        assert (method.attack.steps, method.attack.step_size) == (steps, step_size)
    larger = trilemma.methods.create("eb-jdat", trilemma.Threat("linf", "16/255"))
    assert larger.attack.step_size == "4/255"
    assert trilemma.methods.create("trades", trilemma.Threat("linf", "8/255")).options.beta == 6
    modes = {
        name: trilemma.methods.create(name, trilemma.Threat("linf", 0.1)).options.attack_mode
        for name in wanted
    }
    assert modes == dict.fromkeys(wanted, "eval") | {"n-fgsm": "train"}


@pytest.mark.parametrize("name", ["jeat", "eb-jdat"])
def test_the_inner_energy_step_raises_the_joint_energy(toy, name: str) -> None:
    clf, batch = toy.mlp(), toy.batch(30)
    inner: dict[str, Any] = {"inner": "energy"} if name == "eb-jdat" else {}
    points, _ = make(toy, name, clf, 30, **inner)
    before, after = (energies.joint_energy(clf(x), batch.labels) for x in (batch.images, points.adversarial))
    assert (after > before).all()


def test_the_inner_variants_of_eb_jdat_raise_what_they_say(toy) -> None:
    clf, batch = toy.mlp(), toy.batch(30)
    clean = clf(batch.images)
    ce, _ = make(toy, "eb-jdat", clf, 30, inner="ce")
    assert (
        energies.cross_entropy(clf(ce.adversarial), batch.labels)
        > energies.cross_entropy(clean, batch.labels)
    ).all()
    # as released: the true logit rises, so it is no attack
    logit, _ = make(toy, "eb-jdat", clf, 30, inner="logit")
    rise = clf(logit.adversarial).gather(1, batch.labels[:, None]) - clean.gather(1, batch.labels[:, None])
    assert rise.mean() > 0


def test_an_unprojected_inner_step_reaches_beyond_the_ball_and_not_the_box(toy) -> None:
    arguments: dict[str, Any] = {"attack": {"steps": 5, "step_size": 0.05}}
    points, _ = make(toy, "eb-jdat", radius=0.1, project=False, **arguments)
    offset = (points.adversarial - points.clean).abs()
    assert 0.11 < offset.max() <= 0.1 + 5 * 0.05 + 1e-6
    assert points.adversarial.min() >= 0 and points.adversarial.max() <= 1


def test_trades_climbs_the_divergence_from_beside_the_image(toy) -> None:
    clf = toy.mlp()
    points, _ = make(toy, "trades", clf)
    near = points.clean + 0.001 * torch.randn(points.clean.shape, generator=torch.Generator().manual_seed(0))
    reached, start = (
        energies.kl_divergence(clf(points.clean), clf.logits(x)) for x in (points.adversarial, near)
    )
    assert (reached > 10 * start).all()


def test_the_data_term_sees_the_view_of_its_backbone(toy) -> None:
    view = toy.batch().views["unaugmented"]
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("sada-jem", {}),
        ("eb-jdat", {}),
        ("eb-jdat", {"backbone": "sada-jem"}),
    )
    for name, options in cases:
        points, _ = make(toy, name, **options)
        assert torch.equal(points.data, view)
    for backbone in ("jem", "jem++"):
        points, _ = make(toy, "eb-jdat", backbone=backbone)
        assert points.data is points.clean


def test_backbones_bring_their_published_chains() -> None:
    threat = trilemma.Threat("linf", 0.1)
    jem = trilemma.methods.create("eb-jdat", threat, backbone="jem").sampler
    assert (jem.name, jem.steps, jem.step_size, jem.noise_std, jem.start) == (
        "langevin",
        10,
        0.25,
        0.005,
        "uniform",
    )
    for chain in (
        trilemma.methods.create("sada-jem").sampler,
        *(
            trilemma.methods.create("eb-jdat", threat, backbone=name).sampler
            for name in ("jem++", "sada-jem")
        ),
    ):
        assert (chain.name, chain.step_size, chain.clamp, chain.noise_std) == ("proximal", 0.25, 2.0, 0.0)
        assert (chain.start, chain.mode, chain.buffer_size, chain.reinit) == (
            "class-gaussian",
            "train",
            10_000,
            0.05,
        )


def test_another_sampler_brings_its_own_step_noise_and_clamp() -> None:
    threat = trilemma.Threat("linf", 0.1)
    changed = trilemma.methods.create("jeat", threat, sampler={"name": "proximal"}).sampler
    assert (changed.step_size, changed.noise_std, changed.clamp) == (None, None, None)
    assert changed.buffer_size == 10_000 and changed.steps == 20
    asked = trilemma.methods.create("jeat", threat, sampler={"name": "proximal", "clamp": 1.0}).sampler
    assert asked.clamp == 1.0


def test_a_chain_of_another_sampler_walks_by_its_defaults(toy) -> None:
    """jeat with a proximal chain: no noise, clamped at 2."""
    clf = toy.mlp()
    for parameter in clf.parameters():
        parameter.data.mul_(3)  # gradients beyond the clamp
    sampler = {"name": "proximal", "steps": 1, "buffer_size": 0, "start": "data"}
    points, _ = make(toy, "jeat", clf, sampler=sampler)
    data = toy.image_set().float_images().requires_grad_()
    (gradient,) = torch.autograd.grad(-clf(data).logsumexp(1).sum(), data)
    assert gradient.abs().max() > 2
    reachable = data - 0.25 * gradient.clamp(-2, 2)
    distance = (points.generated[:, None] - reachable[None]).abs().flatten(2).amax(2)
    assert (distance.amin(1) < 1e-5).all()


@pytest.mark.parametrize("name", ["jeat", "eb-jdat"])
def test_langevin_chains_may_leave_the_box_and_proximal_ones_may_not(toy, name: str) -> None:
    options: dict[str, Any] = {"backbone": "jem"} if name == "eb-jdat" else {}
    free, _ = make(toy, name, sampler={**CHAIN, "step_size": 1.0}, **options)
    assert free.generated.min() < 0 or free.generated.max() > 1
    boxed, _ = make(toy, "eb-jdat", sampler={**CHAIN, "step_size": 1.0})
    assert boxed.generated.min() >= 0 and boxed.generated.max() <= 1


def test_chains_are_written_back_to_the_buffer(toy) -> None:
    points, state = make(toy, "sada-jem", sampler={"buffer_size": 200, "steps": 2, "reinit": 0.0})
    stored = state.buffer.images.flatten(1)
    found = (points.generated.flatten(1)[:, None] == stored[None]).all(2).any(1)
    assert found.all()
    _, untouched = make(toy, "sada-jem", sampler={"buffer_size": 0, "steps": 2})
    assert untouched.buffer is None


def test_chains_of_the_joint_energy_carry_the_classes_they_descend(toy) -> None:
    points, _ = make(toy, "eb-jdat", sampler={**CHAIN, "energy": "joint"})
    assert points.generated_labels is not None and points.generated_labels.shape == (6,)
    clf = toy.mlp()
    start, _ = make(toy, "eb-jdat", clf, sampler={**CHAIN, "energy": "joint", "steps": 1, "step_size": 1e-9})
    walked, _ = make(toy, "eb-jdat", clf, sampler={**CHAIN, "energy": "joint", "steps": 5, "step_size": 0.01})
    assert torch.equal(start.generated_labels, walked.generated_labels)
    low, high = (energies.joint_energy(clf(p.generated), p.generated_labels) for p in (walked, start))
    assert (low < high).all()
    marginal, _ = make(toy, "eb-jdat")
    assert marginal.generated_labels is None


@pytest.mark.parametrize("name", ["pgd-at", "n-fgsm", "trades", "jeat", "eb-jdat", "sada-jem", "standard"])
def test_points_leak_no_gradient_and_change_no_buffer(toy, name: str) -> None:
    clf = toy.conv(dropout=0.2).train()
    clf.network[1].eval()
    before = [buffer.clone() for buffer in clf.buffers()], [module.training for module in clf.modules()]
    points, _ = make(toy, name, clf)
    assert all(p.grad is None and p.requires_grad for p in clf.parameters())
    assert all(torch.equal(a, b) for a, b in zip(clf.buffers(), before[0], strict=True))
    assert [module.training for module in clf.modules()] == before[1]
    for images in (points.adversarial, points.generated):
        assert images is None or images.grad_fn is None


def test_adversarial_images_hold_their_gradient_after_backward(toy) -> None:
    clf = toy.mlp()
    for name in ("pgd-at", "trades", "eb-jdat"):
        points, _ = make(toy, name, clf)
        assert points.adversarial.grad is None
        method = trilemma.methods.create(name, trilemma.Threat("linf", 0.1))
        method.terms(clf, points, MethodState(0)).loss.backward()
        assert points.adversarial.grad is not None and points.adversarial.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["sada-jem", "eb-jdat"])
def test_the_generative_term_sees_the_view_that_was_asked_for(toy, name: str) -> None:
    batch = toy.batch()
    published, _ = make(toy, name)
    classified, _ = make(toy, name, data_view="classified")
    torch.testing.assert_close(published.data, batch.views["unaugmented"])
    assert classified.data is classified.clean
