"""Calibration error: by hand, against NumPy, against torchmetrics, and its floor for a calibrated classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from trilemma.errors import CheckpointError
from trilemma.metrics.calibration import BINS, error_by_chance, probabilities, reliability


def drawn(
    count: int, classes: int = 4, seed: int = 0, scale: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and labels drawn from them: a calibrated classifier."""
    generator = torch.Generator().manual_seed(seed)
    shares = probabilities(scale * torch.randn(count, classes, generator=generator))
    return shares, torch.multinomial(shares, 1, generator=generator)[:, 0]


def error(shares: torch.Tensor, labels: torch.Tensor) -> float:
    return reliability(shares, labels).error


def by_definition(shares: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """A loop over the bins, in NumPy float64."""
    confidence, right = shares.max(1), shares.argmax(1) == labels
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = (confidence >= low) & ((confidence < high) | (b == bins - 1))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition_and_the_library(seed):
    shares, labels = drawn(300, seed=seed)
    found = error(shares, labels)
    assert found == pytest.approx(by_definition(shares.numpy(), labels.numpy()), abs=1e-12)
    assert found == pytest.approx(
        float(multiclass_calibration_error(shares, labels, num_classes=4, n_bins=15)), abs=1e-6
    )


def test_every_image_lies_in_the_bin_of_its_confidence():
    shares, labels = drawn(500, seed=7)
    found = reliability(shares, labels)
    assert int(found.count.sum()) == 500
    full = found.count > 0
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    assert bool(((found.confidence >= edges[:-1]) & (found.confidence <= edges[1:]))[full].all())
    assert bool(found.accuracy[~full].isnan().all())


def test_two_bins_by_hand():
    # 0.9 said four times, right twice; 0.6 said once, right: 4/5 |0.5 - 0.9| + 1/5 |1 - 0.6| = 0.4.
    shares = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert error(shares, labels) == pytest.approx(0.4, abs=1e-12)


def test_a_confidence_of_one_belongs_to_the_last_bin():
    """The library alone gives it a sixteenth bin, where the two gaps of the last bin do not cancel."""
    shares = torch.tensor([[1.0, 0.0], [0.95, 0.05]], dtype=torch.float64)
    labels = torch.tensor([1, 0])  # wrong when sure, right when less so
    expected = abs(0.5 - 0.975)
    assert by_definition(shares.numpy(), labels.numpy()) == pytest.approx(expected)
    assert error(shares, labels) == pytest.approx(expected, abs=1e-12)
    assert reliability(shares, labels).count[-1] == 2
    alone = float(multiclass_calibration_error(shares, labels, num_classes=2, n_bins=15))
    assert alone == pytest.approx((1.0 + 0.05) / 2)


def test_logits_of_any_size_have_a_confidence_and_others_are_refused():
    shares = probabilities(torch.tensor([[1e4, 0.0], [0.0, 0.0]]))
    assert shares.dtype == torch.float64 and shares.amax(1).tolist() == [1.0, 0.5]
    with pytest.raises(CheckpointError, match="1 of 2 images are not finite"):
        probabilities(torch.tensor([[torch.nan, 0.0], [0.0, 0.0]]))


def test_a_calibrated_classifier_shows_the_error_of_chance():
    """The mean of its error over many sets of labels is the floor; overconfidence lies far above it."""
    found = []
    for seed in range(40):
        shares, labels = drawn(400, seed=seed)
        found.append(error(shares, labels))
    chance = error_by_chance(shares, torch.Generator().manual_seed(0))
    assert chance == pytest.approx(np.mean(found), abs=4 * np.std(found) / 40**0.5)
    shares, labels = drawn(400)
    sure = (shares**4) / (shares**4).sum(1, keepdim=True)
    assert error(sure, labels) > 3 * error_by_chance(sure, torch.Generator().manual_seed(0))


def test_chance_falls_with_the_root_of_the_count():
    values = [error_by_chance(drawn(n)[0], torch.Generator().manual_seed(0)) for n in (400, 6400)]
    assert values[0] / values[1] == pytest.approx(4, rel=0.15)
