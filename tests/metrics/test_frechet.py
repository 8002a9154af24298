"""The Frechet distance: against scipy's matrix root, against closed forms, and what its extractor reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm  # type: ignore[import-untyped]
from torch import nn

import trilemma
from trilemma.errors import ConfigError
from trilemma.metrics.frechet import (
    Extractor,
    Moments,
    frechet_distance,
    image_moments,
    moments,
    penultimate,
)


def rows(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return scale * torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + shift


@pytest.mark.parametrize(("count", "width"), [(200, 5), (300, 40), (20, 40)])
def test_equals_the_textbook_formula_with_scipys_matrix_root(count, width):
    """Twenty rows of width 40 have singular covariances."""
    one, two = rows(count, width, 0), rows(count + 7, width, 1, 1.3, 0.5)
    a, b = one.numpy(), two.numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # scipy's root of a singular product is inexact; a tiny ridge on both sides makes it a fair judge
    ridge = 1e-6 * np.eye(width)
    root = sqrtm((covariances[0] + ridge) @ (covariances[1] + ridge))
    expected = (
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + np.trace(covariances[0] + covariances[1])
        - 2 * np.trace(root).real
    )
    found = frechet_distance(moments(one), moments(two))
    assert found == pytest.approx(expected, rel=2e-3 if count < width else 1e-6)


def test_gaussians_with_a_closed_form():
    def gaussian(mean: list[float], std: list[float]) -> Moments:
        return Moments(
            torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64).square().diag(), 9
        )

    # axes aligned: |m1 - m2|^2 + sum (s1 - s2)^2
    assert frechet_distance(gaussian([0, 0], [1, 2]), gaussian([3, 4], [2, 5])) == pytest.approx(25 + 1 + 9)
    assert frechet_distance(gaussian([1, 1], [1, 0]), gaussian([1, 1], [0, 1])) == pytest.approx(2)


def test_is_a_distance_and_is_unmoved_by_a_rotation():
    one, two = rows(100, 6, 3), rows(100, 6, 4, shift=1.0)
    first, second = moments(one), moments(two)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    turn = torch.linalg.qr(rows(6, 6, 5)).Q
    turned = frechet_distance(moments(one @ turn), moments(two @ turn))
    assert turned == pytest.approx(frechet_distance(first, second), rel=1e-9)


@pytest.mark.parametrize("bad", [torch.ones(1, 3), torch.ones(3), torch.full((4, 3), torch.nan)])
def test_refuses_what_has_no_moments(bad):
    with pytest.raises(ValueError, match="finite"):
        moments(bad)


def test_the_extractor_reads_what_the_last_linear_layer_is_given(toy):
    clf, images = toy.mlp(), toy.images(7)
    first = clf.network[1]
    expected = torch.tanh(first(((images - 0.5) / 0.25).flatten(1)))
    torch.testing.assert_close(penultimate(clf, "toy").features(images), expected)
    assert not clf.network[3]._forward_pre_hooks


def test_the_classifier_is_left_in_its_mode_with_its_statistics(toy):
    clf = toy.conv()
    before = {name: value.clone() for name, value in clf.state_dict().items()}
    features = penultimate(clf, "toy").features(toy.images(5))
    assert clf.training and features.shape == (5, 64)
    assert all(torch.equal(before[name], value) for name, value in clf.state_dict().items())


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(ConfigError, match="no linear layer"):
        penultimate(trilemma.Classifier(nn.Flatten(), 4), "flat")


def test_float_and_stored_images_come_the_same_way(toy):
    extractor = Extractor("pixels", lambda images: images.flatten(1))
    images = toy.images(12)
    stored = (images * 255).round().to(torch.uint8)
    a, b = image_moments(extractor, images, batch_size=5), image_moments(extractor, stored)
    assert torch.equal(a.covariance, b.covariance) and a.count == 12
