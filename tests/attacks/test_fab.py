"""FAB: its step by the paper's formula in float64, the distances it finds, and what it asks of the network."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from tests.reference_models import reference, verdicts
from torch import Tensor, nn

from trilemma import Classifier, Threat, attacks
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.fab import nearest_adversarial, search
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import ConfigError, ImageError
from trilemma.threat import NORMS

ORDER = {"linf": np.inf, "l2": 2}
DUAL = {"linf": 1, "l2": 2}


def linear(classes: int = 4, seed: int = 0) -> Classifier:
    """``W x + b`` on 2x4x4 images, with boundaries well inside the box around grey images."""
    layer, generator = nn.Linear(32, classes), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, 32, generator=generator))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return Classifier(nn.Sequential(nn.Flatten(), layer), classes).eval()


def grey(count: int = 40) -> Tensor:
    return 0.4 + 0.2 * torch.rand(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def linear_distances(clf: Classifier, images: Tensor, norm: str) -> np.ndarray:
    """``min_s |f_s - f_y| / |w_s - w_y|`` in the dual norm, ``[N]``."""
    weight, bias = (p.detach().double().numpy() for p in clf.network.parameters())
    logits = images.double().numpy().reshape(len(images), -1) @ weight.T + bias
    best = []
    for row in logits:
        y = row.argmax()
        others = [s for s in range(len(row)) if s != y]
        best.append(
            min((row[y] - row[s]) / np.linalg.norm(weight[y] - weight[s], DUAL[norm]) for s in others)
        )
    return np.array(best)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [3, None])
def test_on_a_linear_classifier_it_finds_the_least_distance(norm: str, targets: int | None) -> None:
    clf, images = linear(), grey()
    labels, wanted = clf(images).argmax(1), linear_distances(clf, images, norm)
    with inner_loop(clf):
        found, distance = nearest_adversarial(
            Oracle(clf), images, labels, norm, steps=5, targets=targets, radius=0.0
        )
    assert (clf(found).argmax(1) != labels).all()
    np.testing.assert_allclose(distance, wanted, atol=1e-4, rtol=1e-4)
    away = (found - images).flatten(1)
    torch.testing.assert_close(distance, away.abs().amax(1) if norm == "linf" else away.norm(dim=1))


@pytest.mark.parametrize("norm", NORMS)
def test_it_breaks_exactly_the_points_whose_boundary_is_within_the_radius(norm: str) -> None:
    clf, images = linear(), grey()
    labels, wanted = clf(images).argmax(1), linear_distances(clf, images, norm)
    radius = float(np.sort(wanted)[20:22].mean())
    threat = Threat(norm, radius)
    starred = attacks.fab(clf, images, labels, threat, steps=10)
    assert threat.contains(starred, images).all() and starred.min() >= 0 and starred.max() <= 1
    assert ((clf(starred).argmax(1) != labels).numpy() == (wanted < radius)).all()


def projection(x: np.ndarray, w: np.ndarray, value: float, norm: str) -> np.ndarray:
    """The nearest point of the box with ``<w, z - x> = -value``, by bisection of its multiplier, in float64."""
    rates = np.abs(w) if norm == "l2" else (w != 0).astype(float)
    z, low, high = x, 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        z = np.clip(x - np.sign(value * w) * rates * middle, 0, 1)
        low, high = (middle, high) if abs(w @ (z - x)) < abs(value) else (low, middle)
    return z


def by_formula(toy, clf: Classifier, x0: np.ndarray, label: int, target: int, norm: str, steps: int) -> float:
    """The distance of the nearest misclassified iterate of one walk (Algorithm 1), or infinity."""

    def logits(x: np.ndarray) -> np.ndarray:
        row: np.ndarray = toy.logits64(clf, torch.tensor(x).view(1, *toy.shape))[0]
        return row

    x, nearest, h = x0, np.inf, 1e-6
    for _ in range(steps):
        value = logits(x)[target] - logits(x)[label]
        shifted = np.stack([logits(x + h * e) - logits(x - h * e) for e in np.eye(len(x))])
        w = (shifted[:, target] - shifted[:, label]) / (2 * h)
        z, z0 = projection(x, w, value, norm), projection(x0, w, value + w @ (x0 - x), norm)
        d, d0 = np.linalg.norm(z - x, ORDER[norm]), np.linalg.norm(z0 - x0, ORDER[norm])
        a = min(float(d / (d + d0)), 0.1)
        x = np.clip((1 - a) * (x + 1.05 * (z - x)) + a * (x0 + 1.05 * (z0 - x0)), 0, 1)
        if logits(x).argmax() != label:
            nearest = min(nearest, float(np.linalg.norm(x - x0, ORDER[norm])))
            x = 0.1 * x0 + 0.9 * x
    return nearest


@pytest.mark.parametrize("norm", NORMS)
def test_the_walk_follows_its_formula(toy, norm: str, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["trilemma.attacks.fab"], "FINAL_STEPS", 0)
    clf, images = toy.mlp(), toy.images(6)
    logits = clf(images)
    labels, target = logits.argmax(1), logits.topk(2).indices[:, 1]
    with inner_loop(clf):
        _, distance = nearest_adversarial(Oracle(clf), images, labels, norm, steps=4, targets=1, radius=0.0)
    rows = zip(images.double().flatten(1).numpy(), labels.tolist(), target.tolist(), strict=True)
    wanted = [by_formula(toy, clf, x0, y, s, norm, 4) for x0, y, s in rows]
    assert np.isfinite(wanted).sum() >= 3
    np.testing.assert_allclose(distance, wanted, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_with_two_classes_both_forms_are_one(toy, norm: str) -> None:
    clf, images = toy.mlp(classes=2), toy.images(20)
    labels, threat = clf(images).argmax(1), Threat(norm, 0.2)
    starred = attacks.fab(clf, images, labels, threat, steps=10)
    assert torch.equal(attacks.fab(clf, images, labels, threat, steps=10, targets=None), starred)
    assert (clf(starred).argmax(1) != labels).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [2, None])
def test_a_point_is_attacked_as_if_alone(toy, norm: str, targets: int | None) -> None:
    clf, images = toy.mlp(), toy.images(20)
    labels, threat = clf(images).argmax(1), Threat(norm, {"linf": 0.1, "l2": 0.35}[norm])

    def attack(rows: Tensor) -> Tensor:
        return attacks.fab(clf, images[rows], labels[rows], threat, steps=10, targets=targets)

    together, order = attack(torch.arange(20)), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert 0 < (clf(together).argmax(1) != labels).sum() < 20
    torch.testing.assert_close(attack(order), together[order], atol=1e-5, rtol=0)
    parts = torch.cat([attack(rows) for rows in torch.arange(20).split(3)])
    torch.testing.assert_close(parts, together, atol=1e-5, rtol=0)


def test_images_in_another_memory_format_and_wrong_ones_come_back_as_they_should(toy) -> None:
    clf, images = toy.mlp(shape=(3, 4, 4)), toy.images(12, shape=(3, 4, 4))
    labels = clf(images).argmax(1)
    labels[::2] = (labels[::2] + 1) % 3
    plain = attacks.fab(clf, images, labels, Threat("l2", 0.3), steps=5)
    other = attacks.fab(
        clf, images.contiguous(memory_format=torch.channels_last), labels, Threat("l2", 0.3), 5
    )
    assert torch.equal(plain, other)
    assert torch.equal(plain[::2], images[::2]) and (plain[1::2] != images[1::2]).flatten(1).any(1).all()


def test_what_it_asks_and_that_a_broken_point_asks_no_more(toy) -> None:
    """Each step of a walk is two forward passes and one backward pass; then three forward passes sharpen it."""
    clf, images = linear(), grey(10)
    labels = clf(images).argmax(1)
    distances = linear_distances(clf, images, "linf")
    for radius, forwards, backwards in (
        (distances.min() / 2, 1 + 3 * (2 * 7 + 3), 3 * 7),
        (distances.max() * 1.1, 1 + 3 * 2, 3),
    ):
        oracle = Oracle(clf)
        with inner_loop(clf):
            search(oracle, images, labels, Threat("linf", float(radius)), torch.zeros(10), steps=7, targets=9)
        assert (oracle.forwards, oracle.backwards) == (10 * forwards, 10 * backwards)


def test_the_untargeted_form_pays_one_forward_pass_for_all_classes_also_in_parts() -> None:
    clf, images = linear(), grey(10)
    labels, found = clf(images).argmax(1), []
    for batch_size in (None, 4):
        oracle = Oracle(clf, batch_size)
        with inner_loop(clf):
            found.append(
                nearest_adversarial(oracle, images, labels, "l2", steps=7, targets=None, radius=0.0)[0]
            )
        assert (oracle.forwards, oracle.backwards) == (10 * (1 + 2 * 7 + 3), 10 * 3 * 7)
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_points_stepped_in_small_blocks_go_the_same_way(norm: str, toy, monkeypatch) -> None:
    clf, images = toy.mlp(classes=4), toy.images(10)
    labels, found = clf(images).argmax(1), []
    for block in (2**18, 100):  # 2 of the 10 points of 3 walks and 16 pixels each
        monkeypatch.setattr(sys.modules["trilemma.attacks.fab"], "_BLOCK", block)
        with inner_loop(clf):
            found.append(
                nearest_adversarial(Oracle(clf), images, labels, norm, steps=6, targets=3, radius=0.0)
            )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    assert torch.isfinite(found[0][1]).all()


def test_where_there_is_no_boundary_the_image_stays() -> None:
    layer, images = nn.Linear(32, 3), grey(4)
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.tensor([1.0, 0.0, 0.0])
    clf = Classifier(nn.Sequential(nn.Flatten(), layer), 3)
    starred = attacks.fab(clf, images, torch.zeros(4, dtype=torch.int64), Threat(), steps=3)
    assert torch.equal(starred, images)


def test_mistakes_are_named(toy) -> None:
    clf, images, labels = toy.mlp(), toy.images(), toy.labels()
    with pytest.raises(ConfigError, match="targets=0"):
        attacks.fab(clf, images, labels, Threat(), targets=0)
    with pytest.raises(ConfigError, match="steps=-1"):
        attacks.fab(clf, images, labels, Threat(), steps=-1)
    with pytest.raises(ImageError, match="divide by 255"):
        attacks.fab(clf, images * 255, labels, Threat())


@pytest.mark.parametrize("name", ["mnist_wk_small_linf03", "cifar10_wk_small_l2_36px"])
def test_it_breaks_what_the_recorded_autoattack_broke_and_nothing_else(name: str) -> None:
    """On a few images of each verdict, within a few steps."""
    clf, images, labels, threat = reference(name, 60)
    robust, clean = (verdicts(name)[key][:60] for key in ("robust", "clean"))
    rows = torch.cat([(clean & ~robust).nonzero()[:3, 0], robust.nonzero()[:6, 0]])
    images, labels = images[rows], labels[rows]
    starred = attacks.fab(clf, images, labels, threat, steps=10)
    wrong = clf(starred).argmax(1) != labels
    assert threat.contains(starred, images).all()
    assert wrong[:3].sum() >= 2 and not wrong[3:].any()
