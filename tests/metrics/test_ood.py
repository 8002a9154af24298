"""Scores by autograd and NumPy, AUROC by counting pairs, and its interval by what it must cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import trilemma
from trilemma.errors import CheckpointError
from trilemma.metrics.accuracy import wilson_interval
from trilemma.metrics.ood import SCORES, auroc, auroc_interval, ood_scores


def pairs(inside: np.ndarray, outside: np.ndarray) -> float:
    """Mann and Whitney: wins over all pairs, a tie is half a win."""
    gaps = inside[:, None] - outside[None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


scores = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(scores, scores)
def test_auroc_counts_pairs_and_ties(one, two):
    a, b = np.array(one, dtype=float), np.array(two, dtype=float)
    found = auroc(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(pairs(a, b), abs=1e-6)
    assert found == pytest.approx(1 - auroc(torch.from_numpy(b), torch.from_numpy(a)), abs=1e-6)


def test_auroc_reads_order_alone_however_large_the_scores():
    """A sigmoid, as the library would apply it to scores beyond [0, 1], turns these into ties."""
    inside, outside = torch.tensor([800.0, 1000.0]).double(), torch.tensor([500.0, 900.0]).double()
    assert auroc(inside, outside) == pytest.approx(0.75)
    assert auroc(inside / 1e6 - 5, outside / 1e6 - 5) == pytest.approx(0.75)
    assert auroc(torch.ones(3), torch.ones(2)) == 0.5


def test_scores_are_higher_for_denser_images_and_equal_autograd(toy):
    clf, images = toy.mlp(), toy.images(7)
    found = ood_scores(clf, images, batch_size=3)
    logits = toy.logits64(clf, images)
    energy = -np.log(np.exp(logits).sum(1))
    assert list(found) == list(SCORES)
    np.testing.assert_allclose(found["-E(x)"], -energy, rtol=1e-5)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found["max softmax"], shares.max(1), rtol=1e-5)
    step = 1e-3
    for row in range(2):
        slope = []
        for pixel in range(images[0].numel()):
            moved = images[[row, row]].clone()
            moved.view(2, -1)[0, pixel] += step
            moved.view(2, -1)[1, pixel] -= step
            up, down = np.log(np.exp(toy.logits64(clf, moved)).sum(1))
            slope.append((up - down) / (2 * step))
        assert float(found["-|grad E(x)|"][row]) == pytest.approx(-np.linalg.norm(slope), rel=1e-3)


def test_scores_leave_the_classifier_alone_and_read_eval_mode(toy):
    clf = toy.conv(dropout=0.5)
    before = {name: value.clone() for name, value in clf.state_dict().items()}
    one, two = (ood_scores(clf, toy.images(6), size) for size in (6, 2))
    assert all(torch.allclose(one[name], two[name], rtol=1e-5) for name in SCORES)
    assert clf.training and all(p.requires_grad and p.grad is None for p in clf.parameters())
    assert all(torch.equal(before[name], value) for name, value in clf.state_dict().items())


def test_8_bit_and_float_images_have_the_same_scores(toy):
    stored = (toy.images(5) * 255).round().to(torch.uint8)
    one, two = (ood_scores(toy.mlp(), part) for part in (stored, stored.float() / 255))
    assert all(torch.equal(one[name], two[name]) for name in SCORES)


def test_a_classifier_that_has_diverged_is_named(toy):
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :2] * torch.nan

    with pytest.raises(CheckpointError, match=r"-E\(x\) is not finite for 4 of 4"):
        ood_scores(trilemma.Classifier(Broken(), 2), toy.images(4))


# --- The interval ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.2, 0.5, 0.93, 1.0])
def test_the_interval_holds_the_area_and_mirrors(value):
    low, high = auroc_interval(value, 80, 50)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.02  # also at 0 and 1, where one from the spread of the scores would be a point
    assert auroc_interval(1 - value, 50, 80) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_more_images_narrow_it_as_their_root():
    wide, narrow = (np.diff(auroc_interval(0.8, n, n))[0] for n in (100, 1600))
    assert wide / narrow == pytest.approx(4, rel=0.05)


def test_its_edges_solve_the_equation_it_is_defined_by():
    """Newcombe 2006: ``|found - area| = z sqrt(V(area))``, written out once more."""
    found, m, n, z = 0.87, 40, 60, 1.959963984540054
    for area in auroc_interval(found, m, n):
        more = (m + n) / 2 - 1
        spread = area * (1 - area) * (1 + more * (1 - area) / (2 - area) + more * area / (1 + area)) / (m * n)
        assert abs(found - area) == pytest.approx(z * spread**0.5, rel=1e-6)


def test_one_pair_is_wilsons_interval():
    """With one image on either side the area is one trial that is won or lost."""
    for won in (0, 1):
        assert auroc_interval(float(won), 1, 1) == pytest.approx(wilson_interval(won, 1), abs=1e-6)


def test_it_covers_the_true_area_of_two_normals():
    generator, inside_it = torch.Generator().manual_seed(0), 0
    shift = 1.5
    truth = float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(shift / 2**0.5)))
    for _ in range(200):
        one = torch.randn(40, generator=generator) + shift
        two = torch.randn(40, generator=generator)
        low, high = auroc_interval(pairs(one.numpy(), two.numpy()), 40, 40)
        inside_it += low <= truth <= high
    assert inside_it >= 182  # 95 % of 200 is 190, four errors below it 178
