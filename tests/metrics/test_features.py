"""Kernel distance, score and Frechet distance against the library in float64, known values, and the names they get."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from trilemma.metrics.features import (
    Features,
    classifier_score,
    extract,
    feature_metrics,
    kernel_distance,
    metric_names,
)
from trilemma.metrics.frechet import Extractor, frechet_distance, moments, penultimate


def rows(count: int, width: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) + shift


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Identity(nn.Module):
    """An extractor for the library's metrics: their images are our features."""

    num_features = 6

    def forward(self, features: Tensor) -> Tensor:
        return features


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The library warns that it keeps all features, and shuffles by the global random state."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


def test_frechet_distance_equals_the_librarys_in_float64():
    one, two = rows(80), rows(120, seed=1, shift=0.5)
    library = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    library.update(one, real=True)
    library.update(two, real=False)
    assert frechet_distance(moments(one), moments(two)) == pytest.approx(float(library.compute()), rel=1e-9)


def test_kernel_distance_equals_the_librarys_and_a_double_loop():
    one, two = rows(40), rows(40, seed=1, shift=0.3)
    library = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=40)
    library.update(one, real=False)
    library.update(two, real=True)
    found, spread = kernel_distance(one, two, seeded())
    assert found == pytest.approx(float(library.compute()[0]), rel=1e-9)
    assert spread == 0

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        values = [
            (float(a[i] @ b[j]) / 6 + 1) ** 3 for i in range(40) for j in range(40) if not same or i != j
        ]
        return sum(values) / len(values)

    assert found == pytest.approx(
        mean(one, one, True) + mean(two, two, True) - 2 * mean(one, two, False), rel=1e-9
    )


def test_kernel_distance_is_zero_on_average_for_one_distribution():
    found = torch.tensor([kernel_distance(rows(30, seed=2 * s), rows(30, seed=2 * s + 1), seeded())[0]
                          for s in range(300)])  # fmt: skip
    assert bool((found < 0).any())
    assert abs(float(found.mean())) < 3 * float(found.std()) / 300**0.5
    assert kernel_distance(rows(30), rows(30, seed=1, shift=1.0), seeded())[0] > 10 * float(found.std())


def test_kernel_distance_is_a_function_of_its_seed_alone():
    one, two = rows(30), rows(50, seed=1)
    first = kernel_distance(one, two, seeded(3))
    torch.manual_seed(5)
    assert kernel_distance(one, two, seeded(3)) == first
    assert kernel_distance(one, two, seeded(4)) != first


def test_score_equals_the_librarys_where_one_split_leaves_no_choice():
    logits = rows(60, seed=4) * 2
    library = InceptionScore(feature=Identity(), splits=1)
    library.update(logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = float(library.compute()[0])
    values = [classifier_score(logits, seeded(), splits=s)[0] for s in (1, 10)]
    assert values[0] == pytest.approx(expected, rel=1e-12)
    assert 1 < values[1] < values[0]  # fewer images per split see less variety


def test_score_runs_from_one_to_the_number_of_classes():
    alike = torch.tensor([[5.0, 1.0, 0.0]]).expand(40, 3)
    assert classifier_score(alike, seeded())[0] == pytest.approx(1)
    sure = torch.eye(4).repeat(25, 1) * 1e4  # probabilities underflow to 0
    found, _ = classifier_score(sure, seeded(), splits=1)
    assert found == pytest.approx(4)
    assert 1 <= classifier_score(rows(50) * 3, seeded())[0] <= 6


def test_names_are_inceptions_alone(toy):
    extractor = penultimate(toy.mlp(), "standard")
    assert metric_names(extractor) == {
        "frechet": "FD-standard",
        "kernel": "KD-standard",
        "score": "CS-standard",
    }
    called = Extractor("inception", lambda images: images.flatten(1))
    assert metric_names(called)["frechet"] == "FD-inception"
    assert metric_names(Extractor("inception", called.features, inception=True)) == {
        "frechet": "FID", "kernel": "KID", "score": "IS",
    }  # fmt: skip


def test_features_and_logits_of_a_classifier_come_from_one_pass_over_8_bits(toy):
    clf, images = toy.mlp(), toy.images(9)
    stored = (images * 255).round().to(torch.uint8)
    one, two = (extract(penultimate(clf, "toy"), part, batch_size=4) for part in (images, stored))
    assert torch.equal(one.values, two.values) and one.values.dtype == torch.float64
    assert one.logits is not None and two.logits is not None
    torch.testing.assert_close(one.logits, clf(stored.float() / 255).detach().double())


def test_figures_of_real_images_are_better_than_those_of_others():
    reference = Features(rows(300), None)
    near, far = (
        feature_metrics(Features(rows(100, seed=1, shift=s), None), reference, 0) for s in (0.0, 2.0)
    )
    assert near["frechet"] < far["frechet"] and near["kernel"] < far["kernel"]
    for name in ("precision", "recall", "density", "coverage"):
        assert near[name] > far[name]
    assert (near["count"], near["reference_count"], near["manifold_count"]) == (100, 300, 100)
    assert near["score"] is None and near["score_std"] is None


def test_too_few_images_have_no_manifold_and_no_score():
    found = feature_metrics(Features(rows(4), rows(4)), Features(rows(50, seed=1), None), 0)
    assert found["precision"] is None and found["score"] is None
    assert found["frechet"] > 0


def test_the_standard_error_of_the_kernel_distance_is_that_of_its_subsets():
    """100 subsets: a tenth of their standard deviation; one pair of whole sets has none."""
    found = feature_metrics(Features(rows(40), None), Features(rows(60, seed=1), None), 0)
    assert found["kernel_error"] == pytest.approx(found["kernel_std"] / 10) and found["kernel_std"] > 0
    assert (
        feature_metrics(Features(rows(40), None), Features(rows(40, seed=1), None), 0)["kernel_error"] is None
    )
