"""Checks of input gradients: zero, not finite, or without predictive value for the loss nearby."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.margins import margin
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, is_frequent, max_abs
from trilemma.threat import Threat

# Change in pixel units that is far below one step of 8-bit images and far above rounding.
TINY = 1e-4
# Length of the test step along the gradient, in radii.
STEP = 0.1
# Bounds for the actual change of the margin, relative to the change that the gradient predicts.
ACCEPTED_RATIO = (0.05, 20.0)
# Tolerance for differences of rounded outputs, in steps, and the smallest step, relative to the largest output.
OFF_GRID, SMALLEST_STEP = 0.05, 1e-5


def gradient_findings(
    probe: Probe, images: Tensor, labels: Tensor, logits: Tensor, seeds: Tensor, threat: Threat | None
) -> list[Finding]:
    """Findings about the gradient of the margin, which does not vanish with confidence as the cross-entropy's does.

    Args:
        images: correctly classified images, ``[n, C, H, W]``.
        logits: their logits, ``[n, K]``.
    """
    count = len(images)
    values, _, gradient = probe.gradient(images, labels, margin)
    magnitude = max_abs(gradient)
    not_finite = ~torch.isfinite(magnitude)
    zero = magnitude == 0
    findings = []
    if bool(not_finite.any()):
        observation = "the input gradient is NaN or infinite"
        findings.append(
            Finding.from_catalogue("non-finite-gradients", observation, int(not_finite.sum()), count)
        )
    if bool(zero.all()) or is_frequent(int(zero.sum()), count, 0.05):
        findings.append(_zero_gradient_finding(probe, images, logits, seeds, zero))
    useful = (~not_finite & ~zero).nonzero().squeeze(1)
    if threat is not None and len(useful):
        ratio = _actual_to_predicted_change(
            probe, images[useful], labels[useful], values[useful], gradient[useful], threat
        )
        unpredicted = int(((ratio < ACCEPTED_RATIO[0]) | (ratio > ACCEPTED_RATIO[1])).sum())
        if is_frequent(unpredicted, len(useful), 0.25):
            observation = (
                f"a step of {STEP:g} radii along the gradient changes the margin by a median of "
                f"{float(ratio.median()):.2g} times what the gradient predicts"
            )
            findings.append(
                Finding.from_catalogue("shattered-gradients", observation, unpredicted, len(useful))
            )
    return findings


def _zero_gradient_finding(
    probe: Probe, images: Tensor, logits: Tensor, seeds: Tensor, zero: Tensor
) -> Finding:
    """``quantised-outputs``, ``quantised-input`` or ``zero-gradients``.

    With rounded inputs, a change far below one grey level, upwards or downwards,
    does not reach the logits.
    """
    shift = TINY * noise.uniform(seeds, 0, images.shape[1:]).to(images)
    up, down = (max_abs(probe.logits(images + sign * shift) - logits) == 0 for sign in (1, -1))
    flat, unchanged = int(zero.sum()), int((zero & (up | down)).sum())
    detached = "" if probe.connected else " (the outputs are detached from the image)"
    if probe.connected and _on_grid(logits):
        observation = "the input gradient is zero, and all outputs are multiples of one step apart"
        return Finding.from_catalogue("quantised-outputs", observation, flat, len(images))
    if 2 * unchanged >= len(images):
        observation = (
            f"the input gradient is zero{detached}, and a change of {TINY:g} in every pixel does not change the "
            "outputs"
        )
        return Finding.from_catalogue("quantised-input", observation, unchanged, len(images))
    observation = f"the input gradient is zero{detached}"
    return Finding.from_catalogue("zero-gradients", observation, flat, len(images))


def _on_grid(outputs: Tensor) -> bool:
    """Whether all differences between values of ``outputs`` are multiples of the smallest one."""
    values = outputs.double().unique()
    if len(values) < 2:
        return False
    gaps = values.diff()
    steps = gaps / gaps.min()
    return bool(gaps.min() > SMALLEST_STEP * values.abs().max()) and bool(
        ((steps - steps.round()).abs() < OFF_GRID).all()
    )


def _actual_to_predicted_change(
    probe: Probe, images: Tensor, labels: Tensor, values: Tensor, gradient: Tensor, threat: Threat
) -> Tensor:
    """Actual change of the margin after a step along the gradient, over the predicted one, ``[n]``; 1 if linear."""
    step = threat.project(images + STEP * threat.epsilon * threat.ascent(gradient), images) - images
    predicted = (step * gradient).flatten(1).sum(1)
    return (margin(probe.logits(images + step), labels) - values) / predicted
