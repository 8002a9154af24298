"""Outputs that are not logits: not numbers, probabilities, or their logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.evaluation.lint.finding import Finding

ROUNDING = 1e-3


def output_findings(logits: Tensor) -> list[Finding]:
    """What the rows of ``[N, K]`` look like; one class alone can be anything."""
    count = len(logits)
    odd = int((~torch.isfinite(logits).all(1)).sum())
    if odd:
        return [Finding.known("non-finite-outputs", "outputs are NaN or infinite", odd, count)]
    if logits.shape[1] < 2:
        return []
    if float(logits.min()) >= 0 and bool(((logits.sum(1) - 1).abs() < ROUNDING).all()):
        seen = "outputs are not negative and sum to 1"
        return [Finding.known("softmax-outputs", seen, count, count)]
    if float(logits.max()) <= 0 and bool((logits.logsumexp(1).abs() < ROUNDING).all()):
        seen = "exponentials of the outputs sum to 1"
        return [Finding.known("log-softmax-outputs", seen, count, count)]
    return []
