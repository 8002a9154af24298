"""Calibration: whether predictions with a confidence of 80 % are correct in 80 % of cases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.errors import CheckpointError

BINS = 15
# Number of random draws of labels over which :func:`error_by_chance` averages.
DRAWS = 200


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: count, confidence and accuracy in bins of equal width over the confidence in [0, 1].

    torchmetrics' calibration error is not used: it puts a confidence of exactly 1, which the softmax reaches by
    rounding, into an extra bin after the last, rounds to float32, and does not return the bins, which the diagram
    needs. Tests compare the two on data without these differences.

    Attributes:
        count: number of images per bin, int64 ``[B]``.
        confidence, accuracy: mean confidence and accuracy per bin, float64 ``[B]``; NaN in an empty bin.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error ``sum_b n_b / N |accuracy_b - confidence_b|``, in [0, 1].

        Guo et al. 2017, equation 3.
        """
        gaps = (self.accuracy - self.confidence).abs().nan_to_num()
        return float((gaps * self.count).sum() / self.count.sum())


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of logits ``[N, K]`` in float64, on the CPU.

    Raises:
        CheckpointError: some logits are not finite.
    """
    non_finite = int((~torch.isfinite(logits)).any(1).sum())
    if non_finite:
        raise CheckpointError(
            f"confidence: the logits of {non_finite} of {len(logits)} images are not finite; the classifier has "
            "diverged, use an earlier checkpoint"
        )
    return logits.detach().cpu().double().softmax(1)


def reliability(shares: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """The reliability diagram of predictions, binned by the probability of the predicted class.

    Args:
        shares: probabilities, float64 ``[N, K]``, see :func:`probabilities`.
        labels: int64 ``[N]``.
        bins: number of bins B: ``[0, 1/B), [1/B, 2/B), ..., [(B-1)/B, 1]``.
    """
    confidence, predictions = shares.max(1)
    count, bin_index = _binned(confidence, bins)
    correct = (predictions == labels.cpu()).double()
    means = (
        torch.zeros(bins, dtype=torch.float64).index_add(0, bin_index, v) / count
        for v in (confidence, correct)
    )
    return Reliability(count, *means)


def error_by_chance(
    shares: Tensor, generator: torch.Generator, bins: int = BINS, draws: int = DRAWS
) -> float:
    """The expected calibration error of a perfectly calibrated classifier with these confidences and this many images.

    The estimated error is never negative, so that it does not reach 0 for a calibrated classifier; its expected value
    is computed here as the mean over labels that are drawn with the confidences as probabilities.

    Args:
        shares: probabilities, float64 ``[N, K]``.
        generator: random-number generator of the draws, on the CPU.
        bins: number of bins.
        draws: number of draws.
    """
    confidence = shares.max(1).values
    _, bin_index = _binned(confidence, bins)
    total = torch.zeros(())
    for _ in range(draws):
        correct = torch.rand(len(confidence), generator=generator, dtype=torch.float64) < confidence
        gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_index, correct.double() - confidence)
        total = total + gaps.abs().sum() / len(confidence)
    return float(total / draws)


def _binned(confidence: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The number of images per bin, and the bin of each image; a confidence of 1 is in the last bin."""
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    bin_index = torch.bucketize(confidence, edges[1:-1], right=True)
    return torch.bincount(bin_index, minlength=bins), bin_index
