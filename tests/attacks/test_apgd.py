"""Auto-PGD: its losses and its algorithm against NumPy, exact answers on linear classifiers, and properties."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from trilemma import Classifier, attacks, noise
from trilemma.attacks import margins
from trilemma.attacks.apgd import _LOSSES, _start, checkpoints, search
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import ConfigError
from trilemma.threat import NORMS, Threat

few = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LOSSES = ("ce", "dlr", "dlr-targeted", "margin-targeted")
RADIUS = {"linf": 0.1, "l2": 0.5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_logits(count: int = 50, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.randn(count, classes, generator=generator(), dtype=torch.float64) * 3
    labels = torch.arange(count) % classes
    return logits, labels, (labels + 1 + torch.arange(count) % (classes - 1)) % classes


def dlr64(z: np.ndarray, y: Any) -> float:
    ordered = np.sort(z)[::-1]
    return float(-(z[y] - np.delete(z, y).max()) / (ordered[0] - ordered[2]))


def targeted_dlr64(z: np.ndarray, y: Any, t: Any) -> float:
    ordered = np.sort(z)[::-1]
    return float(-(z[y] - z[t]) / (ordered[0] - (ordered[2] + ordered[3]) / 2))


def test_the_scaled_losses_and_their_gradients_are_those_of_their_formulas():
    logits, labels, targets = some_logits()
    for ours, theirs in (
        (lambda z: margins.dlr(z, labels), lambda z, i: dlr64(z, labels[i])),
        (
            lambda z: margins.targeted_dlr(z, labels, targets),
            lambda z, i: targeted_dlr64(z, labels[i], targets[i]),
        ),
    ):
        here = logits.clone().requires_grad_()
        values = ours(here)
        (gradient,) = torch.autograd.grad(values.sum(), here)
        for i, z in enumerate(logits.numpy()):
            assert values[i].item() == pytest.approx(theirs(z, i), rel=1e-9)
            for k, unit in enumerate(1e-6 * np.eye(len(z))):
                slope = (theirs(z + unit, i) - theirs(z - unit, i)) / 2e-6
                assert gradient[i, k].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_the_scaled_losses_do_not_see_shifts_and_scales_of_the_logits():
    logits, labels, targets = some_logits()
    for scaled in (logits * 1e4, logits + 7, logits * 0.01 - 3):
        torch.testing.assert_close(margins.dlr(scaled, labels), margins.dlr(logits, labels))
        torch.testing.assert_close(
            margins.targeted_dlr(scaled, labels, targets), margins.targeted_dlr(logits, labels, targets)
        )


def test_margins_are_positive_exactly_where_the_class_is_wrong():
    logits, labels, _ = some_logits()
    assert torch.equal(margins.margin(logits, labels) > 0, margins.is_wrong(logits, labels))
    assert torch.equal(margins.dlr(logits, labels) > 0, margins.is_wrong(logits, labels))
    nothing = torch.tensor([[1.0, torch.nan], [torch.inf, 0.0]])
    assert margins.is_wrong(nothing, torch.tensor([0, 0])).all()


def test_others_come_best_first_and_never_the_label():
    logits, labels, _ = some_logits()
    found = margins.likeliest_others(logits, labels, 5)
    assert (found != labels[:, None]).all()
    assert (logits.gather(1, found).diff(dim=1) <= 0).all()


def test_the_step_size_is_judged_where_the_paper_says():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    for steps in range(60):
        marks = checkpoints(steps)
        assert marks[0] == 0 and marks == sorted(set(marks)) and marks[-1] <= max(0, steps)


def sure_images(toy, classes: int, count: int) -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    """A classifier and the images it is surest of: small radii do not break them, so every walk runs to its end."""
    clf, images = toy.mlp(classes=classes), toy.images(40)
    logits = clf(images).detach()
    labels = logits.argmax(1)
    chosen = margins.margin(logits, labels).argsort()[:count]
    return clf, images[chosen], labels[chosen]


def algorithm_1(value_and_gradient, clean, start, eps, steps, norm):
    """Croce and Hein 2020a, algorithm 1, for one image in float64. Returns the best point and its value."""

    def project(x):
        delta = x - clean
        length = max(np.linalg.norm(delta), 1e-12)
        delta = np.clip(delta, -eps, eps) if norm == "linf" else delta * min(1, eps / length)
        return np.clip(clean + delta, 0, 1)

    def direction(g):
        return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)

    eta, p, marks = 2 * eps, [0, 0.22], []
    while p[-1] < 1:
        marks.append(ceil(round(p[-1] * steps, 6)))
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    x, before = start, start
    f, g = value_and_gradient(x)
    best = (f, x, g)
    rises, last_best, halved, last_mark = 0, f, False, 0
    for k in range(steps):
        z = project(x + eta * direction(g))
        new = z if k == 0 else project(x + 0.75 * (z - x) + 0.25 * (x - before))
        f_new, g = value_and_gradient(new)
        rises += f_new > f
        before, x, f = x, new, f_new
        if f > best[0]:
            best = (f, x, g)
        if k + 1 in marks:
            halve = rises < 0.75 * (k + 1 - last_mark) or (not halved and best[0] == last_best)
            if halve:
                eta, (f, x, g) = eta / 2, best
            rises, last_best, halved, last_mark = 0, best[0], halve, k + 1
    return best


@pytest.mark.parametrize("norm", NORMS)
def test_it_follows_algorithm_1(toy, norm):
    clf, images, labels = sure_images(toy, classes=4, count=5)
    threat = Threat(norm, {"linf": 0.02, "l2": 0.1}[norm])
    seeds = noise.image_seeds(5, generator(), "cpu")
    start = _start(threat, images, noise.derive(seeds, 0))
    with inner_loop(clf):
        found = search(Oracle(clf), images, labels, threat, seeds, loss="ce", steps=40)
    assert (clf(found).argmax(1) == labels).all()
    clf.double()
    for i in range(5):

        def value_and_gradient(x, i=i):
            here = torch.from_numpy(x).requires_grad_()
            loss = nn.functional.cross_entropy(clf.network((here - 0.5) / 0.25), labels[i : i + 1])
            loss.backward()
            gradient = here.grad
            assert gradient is not None
            return loss.item(), gradient.numpy()

        arguments = (
            images[i : i + 1].double().numpy(),
            start[i : i + 1].double().numpy(),
            threat.epsilon,
            40,
            norm,
        )
        value, _, _ = algorithm_1(value_and_gradient, *arguments)
        ours, _ = value_and_gradient(found[i : i + 1].double().numpy())
        assert ours == pytest.approx(value, rel=1e-5)


class Recorder(Oracle):
    """Keeps the values of every iterate."""

    def __init__(self, clf: Classifier) -> None:
        super().__init__(clf)
        self.values: list[torch.Tensor] = []

    def gradient(self, images, values_of):
        found = super().gradient(images, values_of)
        self.values.append(found[0])
        return found


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_what_comes_back_has_the_highest_loss_of_all_that_was_seen(toy, norm, loss):
    clf, images, labels = sure_images(toy, classes=3, count=8)
    seeds = noise.image_seeds(8, generator(), "cpu")
    with inner_loop(clf):
        oracle = Recorder(clf)
        found = search(oracle, images, labels, Threat(norm, 0.01), seeds, loss=loss, steps=30)
        kept, _, _ = Oracle(clf).gradient(found, lambda z: _LOSSES[loss](z, labels, labels))
    seen = torch.stack(oracle.values)
    assert (clf(found).argmax(1) == labels).all()
    assert (kept >= seen.amax(0) - 1e-6).all()
    assert (oracle.forwards, oracle.backwards) == (31 * 8, 30 * 8)  # a step costs one of each


def test_without_early_stop_a_walk_goes_on_behind_the_boundary_to_the_highest_loss(toy):
    clf, images, labels = sure_images(toy, classes=3, count=8)
    threat, seeds = Threat("linf", 0.5), noise.image_seeds(8, generator(), "cpu")
    with inner_loop(clf):
        oracle = Recorder(clf)
        found = search(oracle, images, labels, threat, seeds, loss="ce", steps=20, early_stop=False)
        stopped = search(Oracle(clf), images, labels, threat, seeds, loss="ce", steps=20)
        first, last = (_LOSSES["ce"](clf(points), labels, labels) for points in (stopped, found))
    assert (oracle.forwards, oracle.backwards) == (21 * 8, 20 * 8)  # nobody leaves
    assert (clf(stopped).argmax(1) != labels).all() and (last > first + 0.1).all()
    assert (last >= torch.stack(oracle.values).amax(0) - 1e-6).all()
    assert threat.contains(found, images).all()


def linear(classes: int = 6, pixels: int = 48) -> Classifier:
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(3)))
    return Classifier(network, classes, image_shape=(3, 4, 4)).eval()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["dlr-targeted", "margin-targeted"])
def test_on_a_linear_classifier_it_breaks_exactly_what_can_be_broken(norm, loss):
    clf = linear()
    images = 0.3 + 0.4 * torch.rand(60, 3, 4, 4, generator=generator(4))  # the box is out of reach
    logits = clf(images).detach()
    labels = logits.argmax(1)
    weight = clf.network.get_parameter("1.weight").detach()
    order = 1 if norm == "linf" else 2
    reach = (weight[None] - weight[labels][:, None]).norm(p=order, dim=2)  # of z_t - z_y per unit of radius
    needed = (
        ((logits.gather(1, labels[:, None]) - logits) / reach).scatter(1, labels[:, None], torch.inf).amin(1)
    )
    radius = float(needed.median())
    found = attacks.apgd(clf, images, labels, Threat(norm, radius), loss=loss, generator=generator())
    broken = clf(found).argmax(1) != labels
    sure = (needed - radius).abs() > 0.01 * radius
    assert torch.equal(broken[sure], (needed < radius)[sure])


@few
@given(
    norm=st.sampled_from(NORMS), radius=st.floats(0.005, 1.0), seed=st.integers(0, 999), loss=st.sampled_from(LOSSES),
    steps=st.integers(0, 8),
)  # fmt: skip
def test_it_stays_inside_ball_and_box(toy, norm, radius, seed, loss, steps):
    clf, images = toy.mlp(classes=5), toy.images(seed=seed).round(decimals=1)
    threat = Threat(norm, radius)
    found = attacks.apgd(clf, images, toy.labels(classes=5), threat, loss, steps, generator=generator(seed))
    assert threat.contains(found, images).all()
    assert found.dtype == images.dtype and found.shape == images.shape and not found.requires_grad


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_path_of_an_image_does_not_depend_on_the_batch(toy, norm, loss):
    clf, images = toy.mlp(classes=5), toy.images(20)
    labels = clf(images).argmax(1)
    labels[3] = (labels[3] + 1) % 5
    whole, one = (
        attacks.apgd(clf, images, labels, Threat(norm, RADIUS[norm]), loss, 20, generator=generator()),
        generator(),
    )
    assert torch.equal(whole[3], images[3])  # wrong as it is
    parts = [
        attacks.apgd(clf, x, y, Threat(norm, RADIUS[norm]), loss, 20, generator=one)
        for x, y in zip(images.split(7), labels.split(7), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert 0.1 < (clf(whole).argmax(1) != labels).float().mean() <= 1
    last = attacks.apgd(
        clf, images.to(memory_format=torch.channels_last), labels, Threat(norm, RADIUS[norm]), loss, 20,
        generator=generator(),
    )  # fmt: skip
    torch.testing.assert_close(last, whole, atol=1e-5, rtol=0)


def test_an_oracle_that_asks_in_parts_says_the_same(toy):
    clf, images = toy.mlp(classes=5), toy.images(20)
    labels = clf(images).argmax(1)
    with inner_loop(clf):
        whole, parts = Oracle(clf), Oracle(clf, batch_size=7)
        for oracle in (whole, parts):
            oracle.logits(images)
        found = [o.gradient(images, lambda z: margins.dlr(z, labels)) for o in (whole, parts)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert (whole.forwards, whole.backwards) == (parts.forwards, parts.backwards) == (40, 20)


def test_walks_start_on_the_sphere(toy):
    images, seeds = torch.full((50, 3, 4, 4), 0.5), noise.image_seeds(50, generator(), "cpu")
    for norm, order in (("linf", torch.inf), ("l2", 2)):
        start = _start(Threat(norm, 0.1), images, seeds)
        length = (start - images).flatten(1).norm(p=order, dim=1)
        torch.testing.assert_close(length, torch.full((50,), 0.1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("classes", "change", "message"),
    [
        (5, {"loss": "cw"}, "loss='cw' is unknown; choose one of ce, dlr, dlr-targeted, margin-targeted"),
        (2, {"loss": "dlr"}, "'dlr' needs at least 3 classes, the classifier has 2"),
        (3, {"loss": "dlr-targeted"}, "needs at least 4 classes"),
        (5, {"steps": -1}, "steps=-1; must be at least 0"),
        (5, {"targets": 3}, "targets=3, but loss='ce' has no targets; leave targets out"),
        (5, {"loss": "dlr-targeted", "targets": 0}, "targets=0; must be at least 1"),
    ],
)
def test_impossible_settings_get_one_line(toy, classes, change: dict[str, Any], message):
    with pytest.raises(ConfigError, match=message):
        attacks.apgd(
            toy.mlp(classes), toy.images(), toy.labels(classes=classes) % classes, Threat(), **change
        )


def test_targets_are_at_most_the_other_classes(toy):
    clf, images = toy.mlp(classes=4), toy.images()
    labels = clf(images).argmax(1)
    arguments = clf, images, labels, Threat("linf", 0.05), "dlr-targeted", 5
    nine, three = (attacks.apgd(*arguments, targets=count, generator=generator()) for count in (9, 3))
    assert torch.equal(nine, three)


def test_no_images_are_no_trouble(toy):
    nothing = torch.empty(0, 1, 4, 4), torch.empty(0, dtype=torch.int64)
    for loss in LOSSES:
        assert attacks.apgd(toy.mlp(5), *nothing, Threat(), loss, 2).shape == (0, 1, 4, 4)
