"""What every registered training method must hold; a new one is tested the day it is registered.

The cases cover every pair of (classes, channels, size, norm of the ball, network, normalisation).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.config.registry import METHODS
from trilemma.data.image_set import ImageSet
from trilemma.methods import Method, Step
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions, WideResNetOptions

# classes, channels, size, norm of the ball, network, its normalisation
CASES = [
    (2, 1, 8, "linf", "small-resnet", "batch"),
    (10, 3, 32, "l2", "small-resnet", "group"),
    (100, 1, 64, "linf", "small-resnet", "none"),
    (2, 3, 32, "linf", "wide-resnet", "none"),
    (10, 1, 64, "l2", "wide-resnet", "batch"),
    (100, 3, 8, "l2", "wide-resnet", "group"),
    (2, 3, 64, "l2", "mlp", "group"),
    (10, 1, 8, "linf", "mlp", "none"),
    (100, 1, 32, "l2", "mlp", "batch"),
    (10, 1, 32, "linf", "mlp", "group"),
    (2, 3, 8, "l2", "small-resnet", "none"),
    (100, 3, 8, "linf", "small-resnet", "batch"),
]
NAMES = METHODS.names()
VIEWS = {"unaugmented", "basic"}  # what the loader gives


def classifier(classes: int, channels: int, size: int, norm: str, kind: str = "small-resnet") -> Classifier:
    shape = (channels, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mlp":  # somebody's own: no convolution, another kind of BatchNorm
            norms = {"batch": nn.BatchNorm1d(8), "group": nn.GroupNorm(2, 8), "none": nn.Identity()}
            layers = (nn.Linear(channels * size * size, 8), norms[norm], nn.SiLU(), nn.Linear(8, classes))
            network: nn.Module = nn.Sequential(nn.Flatten(), *layers)
        elif kind == "wide-resnet":
            network = create_network(WideResNetOptions(depth=10, width=1, norm=norm), classes, shape)
        else:
            network = create_network(SmallResNetOptions(width=8, norm=norm), classes, shape)
    return Classifier(network, classes, [0.5] * channels, [0.5] * channels, image_shape=shape).train()


def image_set(classes: int, channels: int, size: int) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(
        0, 256, (3 * classes, channels, size, size), generator=generator, dtype=torch.uint8
    )
    names = tuple(str(k) for k in range(classes))
    return ImageSet(images, torch.arange(3 * classes) % classes, names, "noise", "train")


def build(name: str, norm: str = "linf") -> Method:
    kind = METHODS.options(name)
    return trilemma.methods.create(
        name,
        trilemma.Threat(norm, 0.1 if norm == "linf" else 1.0) if kind.uses_attack else None,
        attack={"steps": min(2, kind.attack_defaults["steps"])} if kind.attack_defaults else None,
        sampler={"buffer_size": 20, "steps": 2} if kind.uses_sampler else None,
    )


def batch_of(data: ImageSet, count: int) -> trilemma.Batch:
    places = torch.arange(count)
    plain = data.float_images(places)
    return trilemma.Batch(plain.flip(3), data.labels[places], {"unaugmented": plain}, places)


def check_step(step: Step, batch: trilemma.Batch, classes: int) -> None:
    assert isinstance(step, Step) and step.loss.shape == () and torch.isfinite(step.loss)
    for seen in (step.clean, step.adversarial, step.generated):
        if seen is not None:
            assert seen.images.shape == batch.images.shape and seen.logits.shape == (
                len(batch.labels),
                classes,
            )
            assert not seen.images.requires_grad and not seen.logits.requires_grad
    assert not any(value.requires_grad for value in step.metrics.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_the_network_and_touches_nothing_else(name: str, case) -> None:
    classes, channels, size, ball, network, norm = case
    clf, data = classifier(classes, channels, size, norm, network), image_set(classes, channels, size)
    method, batch = build(name, ball), batch_of(image_set(classes, channels, size), 6)
    handed = [value.clone() for value in (batch.images, batch.labels, batch.views["unaugmented"])]
    state = method.init_state(clf, data, seed=0)

    points = method.points(clf, batch, state)
    assert clf.training and all(p.grad is None and p.requires_grad for p in clf.parameters())
    step = method.terms(clf, points, state)
    check_step(step, batch, classes)
    step.loss.backward()
    method.after_backward(points, state, step)

    gradients = [p.grad for p in clf.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients if gradient is not None)
    for value, before in zip((batch.images, batch.labels, batch.views["unaugmented"]), handed, strict=True):
        assert torch.equal(value, before)
    if points.adversarial is not None:
        beyond = points.adversarial - points.adversarial.clamp(0, 1)
        assert method.options.leaves_box or not beyond.any()
        reach = 3 if method.options.single_step else method.options.reach
        threat = trilemma.Threat(ball, reach * method.threat.epsilon)
        # moved by the same offsets from the middle of the box, where only the ball bounds them
        offsets = (points.adversarial - batch.images) / 2
        half = trilemma.Threat(ball, threat.epsilon / 2)
        assert half.contains(0.5 + offsets, torch.full_like(offsets, 0.5), tolerance=1e-5).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_trains_a_network_without_batch_norm(name: str) -> None:
    clf, data = classifier(3, 1, 8, "group"), image_set(3, 1, 8)
    method, batch = build(name), batch_of(data, 1)
    step = method.loss(clf, batch, method.init_state(clf, data, seed=0))
    check_step(step, batch, 3)
    step.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in clf.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_points_give_the_same_loss_twice(name: str) -> None:
    """Sharpness-aware updates build the loss twice on the same points."""
    clf, data = classifier(3, 1, 8, "batch"), image_set(3, 1, 8)
    method = build(name)
    state = method.init_state(clf, data, seed=0)
    points = method.points(clf, batch_of(data, 6), state)
    assert torch.equal(method.terms(clf, points, state).loss, method.terms(clf, points, state).loss)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_declares_is_what_it_does(name: str) -> None:
    clf, data = classifier(3, 1, 8, "batch"), image_set(3, 1, 8)
    method, options = build(name), METHODS.options(name)
    assert set(method.views) <= VIEWS
    forwards: list[int] = []
    state = method.init_state(clf, data, seed=0)
    points = method.points(clf, batch_of(data, 6), state)
    # images, since several sets may be one forward
    clf.network.register_forward_hook(lambda *called: forwards.append(len(called[2])))
    step = method.terms(clf, points, state)
    assert (points.adversarial is not None) == (step.adversarial is not None) == options.uses_attack
    assert (points.generated is not None) == (step.generated is not None) == options.uses_sampler
    assert (step.clean is not None) == options.forwards_clean
    assert sum(forwards) == len(points.clean) * (options.image_sets + options.detached_sets)
    assert ("start" in points.extra) == options.keeps_start
    assert method.trains_on_adversarial == options.uses_attack
    for role, seen in (("clean", step.clean), ("adversarial", step.adversarial)):
        assert (seen is not None) == (role in step.live), "a regulariser finds the logits that were seen"


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS.options(name).uses_attack])
def test_every_adversarial_method_carries_the_delta_energy_regulariser(name: str) -> None:
    clf, data = classifier(3, 1, 8, "batch"), image_set(3, 1, 8)
    kind = METHODS.options(name)
    method = trilemma.methods.create(
        name,
        trilemma.Threat("linf", 0.1),
        sampler={"buffer_size": 20, "steps": 2} if kind.uses_sampler else None,
        regulariser={"name": "der", "beta": 0.5},
    )
    batch = batch_of(data, 6)
    step = method.loss(clf, batch, method.init_state(clf, data, seed=0))
    check_step(step, batch, 3)
    assert step.clean is not None and "der" in step.metrics
    step.loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_forwards_give_a_finite_float32_loss(name: str) -> None:
    clf, data = classifier(3, 1, 8, "batch"), image_set(3, 1, 8)
    method = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = method.loss(clf, batch_of(data, 6), method.init_state(clf, data, seed=0))
    assert step.loss.dtype == torch.float32 and torch.isfinite(step.loss)


@pytest.mark.parametrize("name", NAMES)
def test_options_describe_themselves_and_survive_a_round_trip(name: str) -> None:
    kind = METHODS.options(name)
    assert METHODS.get(name).Options is kind
    assert kind().name == name and kind.model_validate(kind().model_dump(mode="json")) == kind()
    for field_name, field in kind.model_fields.items():
        assert field_name == "name" or field.description, f"{name}.{field_name} needs a description"
    assert METHODS.get(name).__doc__ and METHODS.row(name).cost
