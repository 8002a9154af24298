"""Protocols ``ece`` and ``ece-pgd-20``: whole rows, the images of pgd-20, and overconfidence that is seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trilemma
from trilemma.errors import CheckpointError


def test_an_error_that_can_be_computed_by_hand(clf, grey):
    row = trilemma.evaluate(clf, grey, ["ece"])["ece"]
    images, labels = grey
    score = 8 * (images[:, 0, 0, 0].double() - 0.5)
    confidence = torch.sigmoid(score.abs())  # of the larger of two classes
    right = (score > 0) == (labels == 1)
    bins = (confidence * 15).long()
    expected = sum(
        float(
            (bins == b).double().mean()
            * (right[bins == b].double().mean() - confidence[bins == b].mean()).abs()
        )
        for b in bins.unique()
    )
    assert row["value"] == pytest.approx(expected, abs=1e-6)
    assert (row["quantity"], row["better"], row["lower"], row["upper"]) == ("ECE", "lower", None, None)
    assert row["also"]["accuracy"] == 0.8
    assert row["also"]["mean confidence"] == pytest.approx(float(confidence.mean()), abs=1e-6)
    assert (len(row["facts"]["bins"]), sum(found["count"] for found in row["facts"]["bins"])) == (15, 10)
    assert row["threat"] is None
    assert set(row) == set(trilemma.evaluate(clf, grey, ["clean"])["clean"])


def test_the_images_under_attack_are_those_of_pgd_20_in_any_batch_size(finished_run):
    clf = trilemma.load(finished_run)
    rows = [
        trilemma.evaluate(clf, "digits", ["pgd-20", "ece-pgd-20"], images=50, seed=3, batch_size=size)
        for size in (50, 7)
    ]
    for found in rows:
        assert found["ece-pgd-20"]["also"]["accuracy"] == pytest.approx(found["pgd-20"]["value"])
        assert found["ece-pgd-20"]["threat"] == {"norm": "linf", "radius": "0.2"}
    assert rows[0]["ece-pgd-20"]["value"] == pytest.approx(rows[1]["ece-pgd-20"]["value"], abs=1e-5)


def test_the_given_images_stay_as_they_are(clf, grey):
    images = grey[0].clone()
    trilemma.evaluate(clf, (images, grey[1]), ["ece-pgd-20"], trilemma.Threat("linf", 0.2))
    assert torch.equal(images, grey[0])


def test_logits_times_ten_thousand_are_overconfident(clf, grey):
    """Accuracy stays, confidence becomes 1, the error becomes the share of wrong images."""
    clf.network.scale.data.mul_(1e4)
    row = trilemma.evaluate(clf, grey, ["ece"])["ece"]
    assert row["value"] == pytest.approx(0.2)
    assert row["also"]["by chance"] == pytest.approx(0, abs=1e-6)


def test_logits_that_are_not_finite_are_no_confidence(grey):
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = images[:, 0, 0, :1] > 0.5
            return torch.where(bright, torch.nan, torch.tensor([1.0, 0.0]))

    with pytest.raises(CheckpointError, match="5 of 10 images are not finite"):
        trilemma.evaluate(trilemma.Classifier(Broken(), 2), grey, ["ece"])
