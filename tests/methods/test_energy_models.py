"""The joint energy models and their adversarial members: chains, BatchNorm modes, views, inner steps, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import trilemma
from trilemma import energies, noise
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import Config
from trilemma.config.recipe import build_config
from trilemma.config.registry import METHODS
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.methods import MethodState, Points
from trilemma.methods.inner import fresh_seeds
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions
from trilemma.training.build import build_classifier
from trilemma.training.estimate import forward_passes

CHAIN = {"buffer_size": 12, "steps": 2}
BACKBONES = ("jem", "jem++", "sada-jem")
# every method with chains, and eb-jdat on each backbone
CHAINED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("jem", "jem++", "sada-jem", "jeat")),
    *((name, {"backbone": backbone}) for name in ("eb-jdat", "eb-jdat-release") for backbone in BACKBONES),
]
IDS = ["-".join([name, *options.values()]) for name, options in CHAINED]


def build(name: str, radius: str | float = 0.1, norm: str = "linf", **arguments: Any):
    threat = trilemma.Threat(norm, radius) if METHODS.options(name).uses_attack else None
    return trilemma.methods.create(name, threat, **arguments)


def make(toy, name: str, clf=None, count: int = 6, **arguments: Any) -> tuple[Any, Any]:
    """Points and state of one step on the toy batch."""
    clf = clf or toy.mlp()
    if METHODS.options(name).uses_sampler:
        arguments.setdefault("sampler", CHAIN)
    method = build(name, **arguments)
    state = method.init_state(clf, toy.image_set(), 0)
    return method.points(clf, toy.batch(count), state), state


# --- jem and jem++ --------------------------------------------------------------------------------------


def test_jem_and_jem_plus_plus_walk_their_published_chains() -> None:
    jem, plus = build("jem").sampler, build("jem++").sampler
    assert (jem.name, jem.steps, jem.step_size, jem.noise_std, jem.clamp) == (
        "langevin",
        20,
        0.25,
        0.005,
        None,
    )
    assert (jem.start, jem.buffer_size, jem.reinit, jem.mode) == ("uniform", 10_000, 0.05, "eval")
    assert (plus.name, plus.steps, plus.step_size, plus.noise_std) == ("proximal", 10, 0.25, 0.0)
    assert (plus.clamp, plus.start, plus.mode) == (2.0, "class-gaussian", "train")
    assert (plus.buffer_size, plus.reinit) == (10_000, 0.05)


def test_only_the_chains_of_jem_leave_the_box(toy) -> None:
    far = {**CHAIN, "step_size": 1.0}
    free, _ = make(toy, "jem", sampler=far)
    assert free.generated.min() < 0 or free.generated.max() > 1
    boxed, _ = make(toy, "jem++", sampler=far)
    assert boxed.generated.min() >= 0 and boxed.generated.max() <= 1


@pytest.mark.parametrize("name", ["jem", "jem++"])
def test_one_forward_of_the_classified_images_serves_both_terms(toy, name: str) -> None:
    """Also with input noise, which is on ``batch.images``: the data term sees the very same noisy images."""
    points, _ = make(toy, name)
    assert points.data is points.clean and points.adversarial is None
    assert build(name).options.loss_sets == 2


def test_the_contrastive_term_is_the_gradient_of_the_log_likelihood_in_the_logits(toy) -> None:
    """Real images are pushed down and samples up, each by its softmax: d(-lse) = -p."""
    clf = toy.mlp()
    data, drawn = (clf(toy.images(seed=k)).detach().requires_grad_() for k in (0, 2))
    points = Points(toy.images(), toy.labels(), generated=toy.images())
    from trilemma.methods.generative import contrastive

    at_data, at_drawn = torch.autograd.grad(contrastive(points, data, drawn), [data, drawn])
    torch.testing.assert_close(at_data, -data.softmax(1) / 6)
    torch.testing.assert_close(at_drawn, drawn.softmax(1) / 6)


@pytest.mark.parametrize(("name", "options"), CHAINED, ids=IDS)
def test_chains_walk_in_the_batch_norm_mode_of_their_backbone(
    toy, name: str, options: dict[str, Any]
) -> None:
    clf, modes = toy.conv().train(), []
    clf.network[1].register_forward_hook(lambda layer, *_: modes.append(layer.training))
    make(toy, name, clf, **options)
    attack = 2 * 5 if name.startswith("eb") else 2 * 10 if name == "jeat" else 0
    wanted = options.get("backbone", name) not in ("jem", "jeat")
    assert modes[-2:] == [wanted, wanted], "the chain runs last, two steps of it here"
    assert not any(modes[:-2]) and len(modes) - 2 <= attack, "the attack is in eval mode"


# --- the energy attack ----------------------------------------------------------------------------------


def test_prejeat_and_jeat_train_on_the_same_images(toy) -> None:
    clf = toy.mlp()
    plain, _ = make(toy, "prejeat", clf)
    joint, _ = make(toy, "jeat", clf)
    assert torch.equal(plain.adversarial, joint.adversarial) and plain.generated is None
    method = build("prejeat", "8/255")
    assert (method.attack.steps, method.attack.step_size, method.options.attack_mode) == (10, "2/255", "eval")


@pytest.mark.parametrize("name", ["jeat", "eb-jdat"])
def test_the_contrastive_term_rises_linearly_to_its_weight(toy, name: str) -> None:
    clf = toy.mlp()
    method = build(name, sampler=CHAIN, warmup_steps=4, generative=2.0)
    state = method.init_state(clf, toy.image_set(), 0)
    points = method.points(clf, toy.batch(), state)
    weights = []
    for _ in range(6):
        step = method.terms(clf, points, state)
        assert torch.equal(step.loss, method.terms(clf, points, state).loss), "SAM computes the loss twice"
        others = sum(
            value for key, value in step.metrics.items() if key in ("robust", "natural", "alignment")
        )
        weights.append(float((step.loss.detach() - others) / step.metrics["contrastive"]))
        method.after_backward(points, state, step)
    assert weights == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0], rel=1e-3)
    # a resumed run goes on where it was; a state without the count is one of an earlier version, without a warm-up
    resumed = method.init_state(clf, toy.image_set(), 0)
    resumed.load_state_dict(state.state_dict())
    assert torch.equal(method.terms(clf, points, resumed).loss, step.loss)
    del resumed.extra["step"]
    assert torch.equal(method.terms(clf, points, resumed).loss, step.loss)


def test_the_energy_attack_follows_its_formula(toy) -> None:
    clf, batch, radius = toy.mlp(), toy.batch(), 0.1
    points, state = make(toy, "prejeat", clf, attack={"steps": 3})
    state.generator.manual_seed(0)
    x = batch.images
    starred = (x + radius * (2 * noise.uniform(fresh_seeds(state, x), 0, (1, 4, 4)) - 1)).clamp(0, 1)
    for _ in range(3):
        starred = starred.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-clf(starred)[range(6), batch.labels].sum(), starred)
        moved = starred + radius / 4 * gradient.sign()
        starred = torch.minimum(torch.maximum(moved, x - radius), x + radius).clamp(0, 1)
    torch.testing.assert_close(points.adversarial, starred.detach(), atol=1e-6, rtol=0)
    before, after = (energies.joint_energy(clf(images), batch.labels) for images in (x, points.adversarial))
    assert (after > before).all()


# --- eb-jdat-release ------------------------------------------------------------------------------------


def test_the_release_has_its_own_steps_weights_and_variants() -> None:
    for backbone, weights in (
        ("sada-jem", (1.0, 0.1, 1.0, 1.0)), ("jem++", (1.0, 0.1, 1.0, 1.0)), ("jem", (0.45, 0.05, 0.45, 0.45)),
    ):  # fmt: skip
        method = build("eb-jdat-release", "8/255", backbone=backbone)
        o = method.options
        assert (o.generative, o.align, o.clean, o.adversarial) == weights
        assert (o.inner, o.alignment, o.project, o.attack_mode) == ("logit", "widen-data", False, "eval")
        assert (method.attack.steps, method.attack.step_size, o.start_scale) == (5, "1/255", 0.5)
        assert method.sampler.steps == 10
    assert build("eb-jdat-release", backbone="jem", align=0.3).options.align == 0.3, "the user's own wins"


def test_the_default_is_a_strong_attack_and_a_two_sided_alignment() -> None:
    o = build("eb-jdat").options
    assert (o.inner, o.alignment, o.project, o.start_scale, o.data_noise) == (
        "ce",
        "der",
        True,
        1.0,
        0.0,
    )
    assert (o.generative, o.align, o.clean, o.adversarial, o.data_view) == (1, 1, 1, 1, "unaugmented")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_released_images_reach_nine_eighths_of_the_radius(toy, norm: str) -> None:
    radius = 0.16 if norm == "linf" else 1.0
    points, _ = make(toy, "eb-jdat-release", count=40, radius=radius, norm=norm)
    offset = (points.adversarial - points.clean).flatten(1)
    length = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert length.max() <= 9 / 8 * radius + 1e-6
    if norm == "linf":
        assert length.max() > radius, "the step is not projected to the ball"
    assert points.adversarial.min() >= 0 and points.adversarial.max() <= 1


def test_the_released_inner_step_follows_its_formula(toy) -> None:
    clf, batch, radius = toy.mlp(), toy.batch(), 0.16
    points, state = make(toy, "eb-jdat-release", clf, radius=radius)
    state.generator.manual_seed(0)
    x, y = batch.images, batch.labels
    uniform = noise.uniform(noise.derive(fresh_seeds(state, x), 0), 0, (1, 4, 4))
    starred = (x + radius / 2 * (2 * uniform - 1)).clamp(0, 1)
    clean = clf(x).detach()
    for _ in range(5):
        starred = starred.detach().requires_grad_()
        logits = clf(starred)
        climbed = logits[range(6), y] + 2 * (1 - cosine_similarity(clean, logits, dim=1))
        (gradient,) = torch.autograd.grad(climbed.sum(), starred)
        starred = (starred + radius / 8 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(points.adversarial, starred.detach(), atol=1e-6, rtol=0)


def test_an_unrelated_order_of_the_real_images_changes_neither_loss_nor_gradient(toy) -> None:
    """Why the data view stands in for the release's second batch: the term is a difference of two means."""
    clf, method = toy.conv().train(), build("eb-jdat-release")
    points, _ = make(toy, "eb-jdat-release", toy.mlp())
    rolled = Points(
        points.clean, points.labels, points.adversarial, points.generated, data=points.data.roll(1, 0)
    )
    losses = [method.terms(clf, at, MethodState(0)).loss for at in (points, rolled)]
    torch.testing.assert_close(losses[0], losses[1])
    for one, other in zip(*(torch.autograd.grad(a, list(clf.parameters())) for a in losses), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_widening_against_the_pair_or_against_the_data_are_two_things(toy) -> None:
    clf = toy.mlp()
    images = {
        name: toy.images(seed=k) for k, name in enumerate(("clean", "adversarial", "generated", "data"))
    }
    points = Points(labels=toy.labels(), **images)
    lse = {name: np.log(np.exp(toy.logits64(clf, part)).sum(1)).mean() for name, part in images.items()}
    for alignment, real in (("widen", "clean"), ("widen-data", "data")):
        step = build("eb-jdat", alignment=alignment).terms(clf, points, MethodState(0))
        np.testing.assert_allclose(step.metrics["alignment"], lse["adversarial"] - lse[real], rtol=1e-4)


# --- backbones ------------------------------------------------------------------------------------------


def test_noise_lies_on_the_un_augmented_images_of_the_generative_term_alone(toy) -> None:
    view = toy.batch(200).views["unaugmented"]
    points, _ = make(toy, "eb-jdat-release", count=200)
    assert torch.equal(points.clean, toy.batch(200).images)
    added = points.data - view
    assert abs(added.std() - 0.015) < 0.001 and abs(added.mean()) < 0.001
    quiet, _ = make(toy, "eb-jdat-release", data_noise=0.0)
    assert torch.equal(quiet.data, toy.batch().views["unaugmented"])
    for option, value in (("backbone", "jem"), ("backbone", "jem++"), ("data_view", "classified")):
        same, _ = make(toy, "eb-jdat-release", **{option: value})  # type: ignore[arg-type]
        assert same.data is same.clean


@pytest.mark.parametrize("backbone", BACKBONES)
def test_only_backbone_jem_lets_its_chains_leave_the_box(toy, backbone: str) -> None:
    points, _ = make(toy, "eb-jdat", backbone=backbone, sampler={**CHAIN, "step_size": 1.0})
    outside = bool(points.generated.min() < 0 or points.generated.max() > 1)
    assert outside == (backbone == "jem")


@pytest.mark.parametrize(("name", "options"), CHAINED, ids=IDS)
def test_the_counted_cost_is_that_of_the_forwards_made(toy, name: str, options: dict[str, Any]) -> None:
    views: list[dict[str, Any]] = [options]
    if "data_view" in METHODS.options(name).model_fields:
        views.append(options | {"data_view": "classified"})
    for chosen in views:
        method = build(name, sampler=CHAIN, **chosen)
        clf = toy.conv().train()
        calls: list[int] = []
        clf.network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        points = method.points(clf, toy.batch(), method.init_state(clf, toy.image_set(), 0))
        walked = len(calls)
        calls.clear()
        method.terms(clf, points, MethodState(0))
        assert len(calls) == method.options.loss_sets
        config = build_config(
            {
                "network": "small-resnet",
                "method": {"name": name, **chosen},
                "threat": {},
                "sampler": {"steps": 2},
            }
        )
        # Steps of the chain and of the attack, each with its gradient; any other pass has none.
        steps = 2 + (config.attack.steps or 0)
        assert forward_passes(config) == walked + steps + 3 * len(calls)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "options"), CHAINED, ids=IDS)
def test_a_hundred_classes_of_large_images_with_fewer_chains_than_classes(
    name: str, options: dict[str, Any], channels: int
) -> None:
    shape, classes = (channels, 64, 64), 100
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * classes, *shape), generator=generator, dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    data = ImageSet(images, torch.arange(2 * classes) % classes, names, "noise", "train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network(SmallResNetOptions(width=8, norm="batch"), classes, shape)
    clf = Classifier(network, classes, image_shape=shape).train()
    method = build(name, sampler={"buffer_size": 7, "steps": 1}, **options)
    state = method.init_state(clf, data, 0)
    plain = data.float_images(torch.arange(4))
    batch = Batch(plain.flip(3), data.labels[:4], {"unaugmented": plain})
    for _ in range(2):
        step = method.loss(clf, batch, state)
        step.loss.backward()
    assert torch.isfinite(step.loss) and step.generated is not None
    assert step.generated.images.shape == (4, *shape) and step.generated.logits.shape == (4, classes)
    assert len(state.buffer) == 7 and state.buffer.labels.max() < classes


# --- BatchNorm momentum ---------------------------------------------------------------------------------


def momenta(config: Config, data: ImageSet) -> set[float | None]:
    network = build_classifier(config, data).network
    return {m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)}


def test_the_batch_norm_momentum_of_a_recipe_reaches_every_layer(toy) -> None:
    sections = {"network": {"name": "small-resnet", "width": 4}, "method": "jem++"}
    data = toy.image_set(shape=(1, 8, 8))
    assert momenta(build_config(sections), data) == {0.1}
    assert momenta(build_config(sections | {"training": {"bn_momentum": 0.9}}), data) == {0.9}
    without = {"network": {"name": "small-resnet", "width": 4, "norm": "none"}, "method": "jem"}
    assert momenta(build_config(without | {"training": {"bn_momentum": 0.9}}), data) == set()
