"""Nearest distances against a naive loop, shares against a count, and samples always beside their starts."""

from __future__ import annotations

import torch
from torch import nn

import trilemma
from trilemma.metrics.generation import (
    compare_samples,
    image_metrics,
    memorisation,
    nearest_distance,
    nearest_images,
)


def _images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_nearest_distance_equals_a_naive_loop_in_any_chunk():
    images, reference = _images(7, 0), _images(23, 1)
    naive = torch.stack([min((image - other).norm() for other in reference) for image in images])
    for chunk in (1, 5, 100):
        torch.testing.assert_close(nearest_distance(images, reference, chunk), naive)


def test_an_image_of_the_reference_is_at_distance_zero_also_in_uint8():
    reference = (_images(20, 2) * 255).round().to(torch.uint8)
    assert nearest_distance(reference[3:6].float() / 255, reference).amax() < 1e-6


class _First(nn.Module):
    """Says the class that the first pixel holds, in tenths."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -(images[:, 0, 0, 0, None] * 10 - torch.arange(4)).square()


def test_the_share_of_named_images_is_that_of_the_images_classified_as_their_label():
    images = torch.zeros(4, 3, 4, 4)
    images[:, 0, 0, 0] = torch.tensor([0.0, 0.1, 0.2, 0.3])
    found = image_metrics(images, torch.tensor([0, 1, 2, 0]), namer=trilemma.Classifier(_First(), 4))
    assert found["named"] == 0.75


def test_samples_are_compared_with_starts_and_real_images():
    labels = torch.tensor([0, 1])
    starts, samples, train = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.1), torch.zeros(1, 3, 4, 4)
    found = compare_samples(
        starts,
        samples,
        labels,
        reference=train,
        namer=trilemma.Classifier(_First(), 4),
        real=(starts, labels),
    )
    assert list(found) == ["start", "sample", "real"]
    assert (found["start"]["named"], found["sample"]["named"]) == (0.5, 0.5)
    assert found["start"]["distance"] == 0.0
    assert abs(found["sample"]["distance"] - 0.1 * 48**0.5) < 1e-5


def test_figures_that_cannot_be_had_are_none():
    found = compare_samples(_images(2, 0), _images(2, 1), torch.tensor([0, 1]))
    assert list(found) == ["start", "sample"]
    assert found["sample"] == {
        "count": 2, "named": None, "named_lower": None, "named_upper": None, "distance": None, "distance_median": None,
    }  # fmt: skip


def test_memorised_images_are_told_from_new_ones():
    """Real images at 1, 2, ..., 20: their 5th percentile is 1.95."""
    of_real = torch.arange(1.0, 21.0)
    assert memorisation(of_real, of_real) == {"distance": 10.5, "distance_ratio": 1.0, "near_copies": 0.05}
    copies = memorisation(torch.zeros(4), of_real)
    assert (copies["distance_ratio"], copies["near_copies"]) == (0.0, 1.0)
    # one copy among three ordinary samples, which the mean ratio hardly shows
    mixed = memorisation(torch.tensor([0.0, 14.0, 14.0, 14.0]), of_real)
    assert (mixed["distance_ratio"], mixed["near_copies"]) == (1.0, 0.25)
    assert memorisation(of_real, torch.zeros(3))["distance_ratio"] is None


def test_the_nearest_image_is_the_one_at_the_nearest_distance():
    generator = torch.Generator().manual_seed(3)
    images, reference = (torch.rand(n, 1, 4, 4, generator=generator) for n in (7, 50))
    gaps = (images[:, None] - reference[None]).flatten(2).norm(dim=2)
    for chunk in (1, 8, 100):
        assert torch.equal(nearest_images(images, reference, chunk), gaps.argmin(1))
        torch.testing.assert_close(nearest_distance(images, reference, chunk), gaps.amin(1))
    as_bytes = (255 * reference).round().to(torch.uint8)
    assert torch.equal(nearest_images(as_bytes[[4, 9]] / 255, as_bytes), torch.tensor([4, 9]))
