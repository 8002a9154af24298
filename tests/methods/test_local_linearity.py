"""GradAlign, ELLE and ELLE-A: losses that look at how the cross-entropy changes around an image."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.config.recipe import build_config
from trilemma.errors import ConfigError
from trilemma.methods import Method, MethodState, Step
from trilemma.methods.elle import linearity_error
from trilemma.methods.grad_align import differentiable_gradient, misalignment
from trilemma.training.estimate import forward_passes

NAMES = ("grad-align", "elle", "elle-a")
EPSILON = 0.1


def make(toy, name: str, clf: Classifier, count: int = 6, norm="linf", **options: Any) -> tuple[Method, Any]:
    """A method, and the points of its first step at radius 0.1."""
    method = trilemma.methods.create(name, trilemma.Threat(norm, EPSILON), **options)
    return method, method.points(clf, toy.batch(count), method.init_state(clf, toy.image_set(), 0))


# --- In NumPy ---------------------------------------------------------------------------------------------


def weights64(clf: Classifier) -> list[Any]:
    return [parameter.detach().double().numpy() for parameter in clf.parameters()]


def ce64(toy, clf: Classifier, images: Tensor, y: Any) -> Any:
    f = toy.logits64(clf, images)
    return np.log(np.exp(f).sum(1)) - f[np.arange(len(f)), y]


def gradient64(toy, clf: Classifier, images: Tensor, y: Any) -> Any:
    """grad_x CE of the toy MLP by hand: through softmax, W2, tanh, W1 and the normalisation."""
    w1, b1, w2, _ = weights64(clf)
    hidden = np.tanh((images.detach().double().numpy().reshape(len(y), -1) - 0.5) / 0.25 @ w1.T + b1)
    p = np.exp(toy.logits64(clf, images))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return (p @ w2 * (1 - hidden**2)) @ w1 / 0.25


@pytest.mark.parametrize("weight", [None, 3.0])
def test_the_loss_of_grad_align_is_its_formula(toy, weight: float | None) -> None:
    clf = toy.mlp()
    method, at = make(toy, "grad-align", clf, weight=weight)
    y = at.labels.numpy()
    g, n = (gradient64(toy, clf, images, y) for images in (at.clean, at.extra["nearby"]))
    cos = (g * n).sum(1) / np.sqrt((g**2).sum(1) * (n**2).sum(1))
    assert cos.min() < 0.98
    lam = 0.02 * 10 ** (255 * EPSILON / 8) if weight is None else weight
    step = method.terms(clf, at, MethodState(0))
    robust = ce64(toy, clf, at.adversarial, y).mean()
    np.testing.assert_allclose(step.loss.item(), robust + lam * (1 - cos.mean()), rtol=1e-5)
    np.testing.assert_allclose(step.metrics["robust"].item(), robust, rtol=1e-5)
    np.testing.assert_allclose(step.metrics["misalignment"].item(), 1 - cos.mean(), rtol=1e-4)


@pytest.mark.parametrize("name", ["elle", "elle-a"])
def test_the_loss_of_elle_is_its_formula(toy, name: str) -> None:
    clf = toy.mlp()
    method, at = make(toy, name, clf)
    y, a = at.labels.numpy(), at.extra["a"].flatten().double().numpy()
    assert len(set(a)) == 6 and 0 < a.min() < a.max() < 1
    x_a, x_b = at.extra["x_a"].double(), at.extra["x_b"].double()
    x_c = at.extra["a"].double() * x_a + (1 - at.extra["a"].double()) * x_b
    ce_a, ce_b, ce_c = (ce64(toy, clf, images, y) for images in (x_a, x_b, x_c))
    error = ((ce_c - a * ce_a - (1 - a) * ce_b) ** 2).mean()
    lam = 10_000.0
    if name == "elle-a":
        lam = 0.99 * 700
        at.extra["weight"].fill_(700)
    step = method.terms(clf, at, MethodState(0))
    robust = ce64(toy, clf, at.adversarial, y).mean()
    np.testing.assert_allclose(step.metrics["linearity_error"].item(), error, rtol=1e-3)
    np.testing.assert_allclose(step.loss.item(), robust + lam * error, rtol=1e-3)
    assert step.metrics["weight"].item() == pytest.approx(lam)


# --- Weight gradients by central differences, in float64 --------------------------------------------------


class Double(Classifier):
    """Logits as the network has them: the library's own are float32."""

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(
            images if self.mean is None or self.std is None else (images - self.mean) / self.std
        )
        return logits


def double(toy, kind: str) -> Double:
    if kind == "mlp":
        return Double(toy.mlp().network, 3, [0.5], [0.25], image_shape=toy.shape).double()
    return Double(toy.conv().network, 3, image_shape=toy.shape).double().train()  # BatchNorm by the batch


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("name", NAMES)
def test_the_weight_gradient_agrees_with_central_differences(toy, name: str, kind: str) -> None:
    """The points stay, so the first gradient of grad-align is a constant here, as it is in the method."""
    clf = double(toy, kind)
    batch = trilemma.Batch(toy.images().double(), toy.labels(), {})
    term = "misalignment" if name == "grad-align" else "linearity_error"
    weight = 1.0
    for _ in range(2):  # the second time both terms are of one size
        method = trilemma.methods.create(name, trilemma.Threat("linf", EPSILON), weight=weight)
        at = method.points(clf, batch, method.init_state(clf, toy.image_set(), 0))
        if name == "elle-a":
            at.extra["weight"].fill_(weight)
        step = method.terms(clf, at, MethodState(0))
        weight = 1 / step.metrics[term].item()
    parameters = list(clf.parameters())
    assert step.loss.dtype == torch.float64
    found = torch.autograd.grad(step.loss, parameters)
    assert step.loss - step.metrics["robust"] > 0.9
    for parameter, gradient in zip(parameters, found, strict=True):
        flat, wanted = parameter.data.view(-1), torch.empty_like(gradient).view(-1)
        for k in range(len(flat)):
            before = flat[k].item()
            sides = []
            for sign in (1, -1):
                flat[k] = before + sign * 1e-5
                sides.append(method.terms(clf, at, MethodState(0)).loss.item())
            flat[k] = before
            wanted[k] = (sides[0] - sides[1]) / 2e-5
        torch.testing.assert_close(gradient.view(-1), wanted, rtol=1e-5, atol=1e-7)


def test_the_first_gradient_of_grad_align_is_held(toy) -> None:
    clf = toy.mlp()
    method, at = make(toy, "grad-align", clf)
    assert at.gradient is not None and not at.gradient.requires_grad
    loose = differentiable_gradient(clf, at.clean, at.labels)
    torch.testing.assert_close(loose, at.gradient)
    second = differentiable_gradient(clf, at.extra["nearby"], at.labels)
    parameters = list(clf.parameters())[:3]
    both, held = (
        torch.autograd.grad(misalignment(first, second), parameters, retain_graph=True)
        for first in (loose, at.gradient)
    )
    assert not any(torch.allclose(one, other, rtol=1e-2) for one, other in zip(both, held, strict=True))
    metric = method.terms(clf, at, MethodState(0)).metrics["misalignment"]
    torch.testing.assert_close(metric, misalignment(at.gradient, second).detach())


# --- Cases with a known answer ----------------------------------------------------------------------------


def linear(weight: Tensor, bias: Tensor) -> Classifier:
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return Classifier(nn.Sequential(nn.Flatten(), layer), len(weight), image_shape=(1, 4, 4))


def test_two_linear_logits_have_one_gradient_direction(toy) -> None:
    """grad CE = (p - 1) (w_y - w_k): only its length changes from point to point."""
    clf = linear(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2))
    batch = trilemma.Batch(toy.images(), toy.labels(classes=2), {})
    method = trilemma.methods.create("grad-align", trilemma.Threat("linf", EPSILON))
    points = method.points(clf, batch, method.init_state(clf, toy.image_set(classes=2), 0))
    assert method.terms(clf, points, MethodState(0)).metrics["misalignment"].abs() < 1e-6


def test_a_loss_that_is_linear_has_no_linearity_error(toy) -> None:
    """A margin far below 0 makes CE = log(1 + exp(-margin)) equal to -margin."""
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    clf = linear(weight, torch.tensor([40.0, 0.0]))
    batch = trilemma.Batch(toy.images(), torch.ones(6, dtype=torch.int64), {})
    method = trilemma.methods.create("elle", trilemma.Threat("linf", EPSILON))
    points = method.points(clf, batch, method.init_state(clf, toy.image_set(classes=2), 0))
    assert method.terms(clf, points, MethodState(0)).metrics["linearity_error"] < 1e-9


def test_the_linearity_error_of_a_quadratic_loss(toy) -> None:
    """CE = s ||x||^2 + 40 misses its chord by s a (1 - a) ||x_a - x_b||^2."""

    class Bowl(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            height = 2.5 * images.flatten(1).square().sum(1) + 40
            return torch.stack([height, torch.zeros_like(height)], dim=1)

    clf = Double(Bowl(), 2)
    batch = trilemma.Batch(toy.images().double(), torch.ones(6, dtype=torch.int64), {})
    method = trilemma.methods.create("elle", trilemma.Threat("linf", EPSILON))
    points = method.points(clf, batch, method.init_state(clf, toy.image_set(classes=2), 0))
    x_a, x_b, a = (points.extra[key] for key in ("x_a", "x_b", "a"))
    miss = 2.5 * a.flatten() * (1 - a.flatten()) * (x_a - x_b).flatten(1).square().sum(1)
    torch.testing.assert_close(linearity_error(clf, points), miss.square().mean())


def test_images_with_a_zero_gradient_are_left_out_of_the_mean() -> None:
    first = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    second = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    first[1], second[3] = 0, 0
    second.requires_grad_()
    kept = [0, 2, 4]
    wanted = 1 - torch.cosine_similarity(first[kept].flatten(1), second[kept].flatten(1)).mean()
    turned = misalignment(first, second)
    torch.testing.assert_close(turned, wanted)
    (gradient,) = torch.autograd.grad(turned, second)
    assert torch.isfinite(gradient).all() and not gradient[[1, 3]].any() and gradient[kept].any()


def test_where_every_gradient_is_zero_the_term_is_zero(toy) -> None:
    clf = linear(torch.zeros(3, 16), torch.zeros(3))
    method, at = make(toy, "grad-align", clf)
    step = method.terms(clf, at, MethodState(0))
    assert step.metrics["misalignment"] == 0
    step.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in clf.parameters())


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_the_angle_does_not_depend_on_the_lengths(scale: float) -> None:
    first, second = torch.randn(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(misalignment(first, scale * second), misalignment(first, second))


# --- Points -----------------------------------------------------------------------------------------------


def test_grad_align_steps_the_radius_from_the_image_and_reuses_that_gradient(toy) -> None:
    clf, batch = toy.conv().train(), toy.batch(20)
    calls: list[int] = []
    clf.network.register_forward_hook(lambda *_: calls.append(1))
    method, at = make(toy, "grad-align", clf, 20)
    assert len(calls) == 1
    method.terms(clf, at, MethodState(0))
    assert len(calls) == 3, "x* and the point nearby; none at x again"
    x = batch.images.clone().requires_grad_()
    fresh = toy.conv().train()  # the attack's forward is in train mode
    (gradient,) = torch.autograd.grad(trilemma.energies.cross_entropy(fresh.logits(x), batch.labels).sum(), x)
    torch.testing.assert_close(at.gradient, gradient)
    torch.testing.assert_close(at.adversarial.detach(), (x + EPSILON * gradient.sign()).clamp(0, 1).detach())
    nearby = at.extra["nearby"]
    assert (nearby - batch.images).abs().max() <= EPSILON + 1e-6
    assert nearby.min() < 0 and nearby.max() > 1


@pytest.mark.parametrize("name", ["elle", "elle-a"])
def test_elle_clips_neither_its_step_nor_its_chord_to_the_box(toy, name: str) -> None:
    clf, batch = toy.mlp(), toy.batch(40)
    _, at = make(toy, name, clf, 40)
    torch.testing.assert_close(at.adversarial.detach(), batch.images + EPSILON * at.gradient.sign())
    assert at.adversarial.min() < 0 and at.adversarial.max() > 1
    ends = [at.extra[key] - batch.images for key in ("x_a", "x_b")]
    for end, point in zip(ends, (at.extra["x_a"], at.extra["x_b"]), strict=True):
        assert 0.99 * EPSILON < end.abs().max() <= EPSILON + 1e-6 and abs(end.mean()) < 0.02
        assert point.min() < 0 and point.max() > 1
    correlation = np.corrcoef(*(end.flatten().numpy() for end in ends))[0, 1]
    assert abs(correlation) < 0.12


@pytest.mark.parametrize("name", NAMES)
def test_under_an_l2_threat_random_points_fill_the_l2_ball(toy, name: str) -> None:
    clf, batch = toy.mlp(), toy.batch(40)
    method, at = make(toy, name, clf, 40, "l2")
    for key in {"nearby", "x_a", "x_b"} & set(at.extra):
        length = (at.extra[key] - batch.images).flatten(1).norm(dim=1)
        assert 0.95 * EPSILON < length.max() <= EPSILON + 1e-6 and length.min() > 0.5 * EPSILON
    if name != "elle-a":
        assert method.threat.pixel_radius(batch.images.shape[1:]) == pytest.approx(EPSILON / 4)
    if name == "grad-align":
        step = method.terms(clf, at, MethodState(0))
        lam = (step.loss.detach() - step.metrics["robust"]) / step.metrics["misalignment"]
        assert lam.item() == pytest.approx(0.02 * 10 ** (255 * EPSILON / 4 / 8), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_only_x_star_moves_the_running_statistics(toy, name: str) -> None:
    clf, alone = toy.conv().train(), toy.conv().train()
    method, at = make(toy, name, clf)
    method.terms(clf, at, MethodState(0)).loss.backward()
    alone.logits(at.adversarial)
    for buffer, wanted in zip(clf.buffers(), alone.buffers(), strict=True):
        assert torch.equal(buffer, wanted)


def test_elle_forwards_the_three_points_of_the_chord_as_one_batch(toy) -> None:
    clf = toy.conv().train()
    method, at = make(toy, "elle", clf)
    sizes: list[int] = []
    clf.network.register_forward_hook(lambda *called: sizes.append(len(called[2])))
    method.terms(clf, at, MethodState(0))
    assert sorted(sizes) == [6, 18]


@pytest.mark.parametrize("name", NAMES)
def test_the_second_term_is_in_full_precision_under_autocast(toy, name: str) -> None:
    clf = toy.conv().train()
    method, at = make(toy, name, clf)
    plain = method.terms(clf, at, MethodState(0)).metrics
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.terms(clf, at, MethodState(0)).metrics
    assert not torch.equal(plain["robust"], half["robust"])
    term = "misalignment" if name == "grad-align" else "linearity_error"
    assert torch.equal(plain[term], half[term])


# --- Weights, options, costs ------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "weight"), [(8, 0.2), (12, 0.63246), (16, 2.0), (24, 20.0)])
def test_the_weight_of_grad_align_follows_the_radius(levels: int, weight: float) -> None:
    threat = trilemma.Threat("linf", f"{levels}/255")
    found = trilemma.methods.create("grad-align", threat).options.weight_at(threat.epsilon)
    assert found == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize(
    ("levels", "weight"),
    [(2, 1000), (8, 1000), (9, 1000), (10, 5000), (20, 5000), (21, 5000), (22, 10_000), (26, 10_000)],
)
def test_the_weight_of_elle_follows_the_radius(levels: int, weight: float) -> None:
    threat = trilemma.Threat("linf", f"{levels}/255")
    assert trilemma.methods.create("elle", threat).options.weight_at(threat.epsilon) == weight


def test_grad_align_refuses_what_it_cannot_do_and_warns_of_what_is_unpublished() -> None:
    with pytest.raises(ConfigError, match=r"attack\.steps: 2 given, .* use 1"):
        trilemma.methods.create("grad-align", trilemma.Threat("linf", 0.1), attack={"steps": 2})
    tree: dict[str, Any] = {"network": "small-resnet", "method": {"name": "grad-align"}, "threat": {}}
    assert build_config(tree).warnings == []
    with pytest.raises(ConfigError, match=r"attack\.steps: 2 given"):
        build_config({**tree, "attack": {"steps": 2}})
    with pytest.raises(ConfigError, match=r"training\.compile: method 'grad-align'"):
        build_config({**tree, "training": {"compile": True}})
    far = {**tree, "threat": {"radius": "17/255"}}
    (warning,) = build_config(far).warnings
    assert warning.startswith("method.weight: ")
    assert build_config({**far, "method": {"name": "grad-align", "weight": 2.0}}).warnings == []
    (warning,) = build_config({**tree, "method": {"name": "grad-align", "attack_mode": "eval"}}).warnings
    assert warning.startswith("method.attack_mode: ")


@pytest.mark.parametrize(("name", "passes"), [("grad-align", 11), ("elle", 14), ("elle-a", 14)])
def test_costs(name: str, passes: int) -> None:
    tree: dict[str, Any] = {"network": "small-resnet", "method": name, "threat": {}}
    assert forward_passes(build_config(tree)) == passes
    assert forward_passes(build_config({**tree, "update": {"name": "sam"}})) == 2 * passes - 2
    assert forward_passes(build_config({**tree, "regulariser": {"name": "der"}})) == passes + 3


# --- The adaptive weight ----------------------------------------------------------------------------------


def errors(count: int) -> list[float]:
    """Positive errors with some that stand out."""
    generator = np.random.default_rng(0)
    values = np.abs(generator.normal(1e-3, 3e-4, count))
    values[[0, 7, 20, 21, 40]] *= 6
    return [float(np.float32(value)) for value in values]


def listed(values: list[float]) -> list[float]:
    """The weight of each step by the definition, from a list of all errors."""
    past: list[float] = []
    weight, weights = 0.0, []
    for value in values:
        if len(past) > 2 and value > np.mean(past) + 2 * np.std(past):
            weight = 4000.0
        else:
            weight *= 0.99
        past.append(value)
        weights.append(weight)
    return weights


def test_the_weight_of_elle_a_is_that_of_a_list_of_all_errors(toy, monkeypatch) -> None:
    clf, method = toy.mlp(), trilemma.methods.create("elle-a", trilemma.Threat("linf", EPSILON))
    values = errors(50)
    wanted = listed(values)
    assert wanted[0] == 0 and wanted.count(4000.0) >= 3 and len(set(wanted)) > 20
    state, found = method.init_state(clf, toy.image_set(), 0), []
    for number, value in enumerate(values):
        if number == 23:  # saved, and taken up by another run that had moved on
            saved = copy.deepcopy(state.state_dict())
            sizes = [value.numel() for value in saved["extra"].values()]
            assert sizes == [1] * 4
            state = method.init_state(clf, toy.image_set(), 1)
            one_step(method, clf, toy, state)
            state.load_state_dict(saved)
        monkeypatch.setattr(
            "trilemma.methods.elle.linearity_error", lambda *_, value=value: torch.tensor(value)
        )
        found.append(one_step(method, clf, toy, state).metrics["weight"].item())
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def one_step(method: Method, clf: Classifier, toy, state: MethodState) -> Step:
    points = method.points(clf, toy.batch(), state)
    remembered = {name: value.clone() for name, value in state.extra.items()}
    step = method.terms(clf, points, MethodState(0))
    assert torch.equal(method.terms(clf, points, MethodState(0)).metrics["weight"], step.metrics["weight"])
    assert all(torch.equal(state.extra[name], value) for name, value in remembered.items())
    method.after_backward(points, state, step)
    return step


def test_elle_a_weighs_the_very_error_that_stands_out(toy) -> None:
    clf = toy.mlp()
    method, at = make(toy, "elle-a", clf)
    assert at.extra["limit"].item() == math.inf
    quiet = method.terms(clf, at, MethodState(0))
    at.extra["limit"].fill_(0.5 * quiet.metrics["linearity_error"].item())
    loud = method.terms(clf, at, MethodState(0))
    torch.testing.assert_close(quiet.loss.detach(), quiet.metrics["robust"])
    wanted = loud.metrics["robust"] + 4000 * loud.metrics["linearity_error"]
    torch.testing.assert_close(loud.loss.detach(), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_regulariser_hands_the_step_on(toy, name: str) -> None:
    clf = toy.mlp()
    method = trilemma.methods.create(name, trilemma.Threat("linf", EPSILON), regulariser={"name": "der"})
    state = method.init_state(clf, toy.image_set(), 0)
    points = method.points(clf, toy.batch(), state)
    method.after_backward(points, state, method.terms(clf, points, MethodState(0)))
    assert name != "elle-a" or state.extra["count"] == 1
