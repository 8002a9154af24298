"""Calibration: whether a classifier that says 80 % is right in 80 % of such cases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.errors import CheckpointError

BINS = 15
# Draws that the error by chance is the mean of.
DRAWS = 200


@dataclass(frozen=True)
class Reliability:
    """The points of a reliability diagram: bins of equal width over the confidence in [0, 1].

    torchmetrics' calibration error is not used: it puts a confidence of exactly 1, which the softmax reaches by
    rounding, into a bin of its own beyond the last, rounds to float32, and does not give the bins that are drawn. Tests
    compare the two where neither matters.

    Attributes:
        count: images per bin, int64 ``[B]``.
        confidence, accuracy: their means per bin, float64 ``[B]``; NaN in an empty bin.
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
        CheckpointError: logits that are not finite, which have no softmax.
    """
    wrong = int((~torch.isfinite(logits)).any(1).sum())
    if wrong:
        raise CheckpointError(
            f"confidence: the logits of {wrong} of {len(logits)} images are not finite; this classifier has diverged, "
            "use an earlier checkpoint"
        )
    return logits.detach().cpu().double().softmax(1)


def reliability(shares: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Images binned by the probability of the class they are given.

    Args:
        shares: probabilities, float64 ``[N, K]``, as of :func:`probabilities`.
        labels: int64 ``[N]``.
        bins: ``[0, 1/B), [1/B, 2/B), ..., [(B-1)/B, 1]``.
    """
    confidence, said = shares.max(1)
    count, place = _binned(confidence, bins)
    right = (said == labels.cpu()).double()
    means = (
        torch.zeros(bins, dtype=torch.float64).index_add(0, place, v) / count for v in (confidence, right)
    )
    return Reliability(count, *means)


def error_by_chance(
    shares: Tensor, generator: torch.Generator, bins: int = BINS, draws: int = DRAWS
) -> float:
    """The error that a perfectly calibrated classifier with these confidences shows on so many images.

    The estimate is never negative, so it does not fall to 0 for a calibrated classifier; this is where it stops. Labels
    are drawn from the confidence itself, and the error of the draws averaged.

    Args:
        shares: as of :func:`reliability`.
        generator: of the draws, on the CPU.
    """
    confidence = shares.max(1).values
    _, place = _binned(confidence, bins)
    total = torch.zeros(())
    for _ in range(draws):
        right = torch.rand(len(confidence), generator=generator, dtype=torch.float64) < confidence
        gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, place, right.double() - confidence)
        total = total + gaps.abs().sum() / len(confidence)
    return float(total / draws)


def _binned(confidence: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Images per bin, and the bin of each image. 1 belongs to the last bin."""
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    place = torch.bucketize(confidence, edges[1:-1], right=True)
    return torch.bincount(place, minlength=bins), place
