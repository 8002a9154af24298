"""Input gradients that are zero, not numbers, or say nothing about their neighbourhood."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.margins import margin
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, largest, many
from trilemma.threat import Threat

TINY = 1e-4  # pixel units: far below one step of 8-bit images, far above rounding
FOLLOWED = 0.1  # radii along the gradient
# A slope that keeps less than a twentieth, or more than twenty times, of what it promised is no slope.
KEPT = (0.05, 20.0)


def gradient_findings(
    probe: Probe, images: Tensor, labels: Tensor, logits: Tensor, seeds: Tensor, threat: Threat | None
) -> list[Finding]:
    """Of the margin, whose gradient does not vanish with confidence as that of the cross-entropy does.

    Args:
        images: correctly classified ones, ``[n, C, H, W]``.
        logits: of them, ``[n, K]``.
    """
    count = len(images)
    values, _, gradient = probe.gradient(images, labels, margin)
    steepest = largest(gradient)
    odd = ~torch.isfinite(steepest)
    zero = steepest == 0
    found = []
    if bool(odd.any()):
        seen = "the input gradient is NaN or infinite"
        found.append(Finding.known("non-finite-gradients", seen, int(odd.sum()), count))
    if bool(zero.all()) or many(int(zero.sum()), count, 0.05):
        found.append(_flat(probe, images, logits, seeds, zero))
    useful = (~odd & ~zero).nonzero().squeeze(1)
    if threat is not None and len(useful):
        kept = _promise_kept(probe, images[useful], labels[useful], values[useful], gradient[useful], threat)
        broken = int(((kept < KEPT[0]) | (kept > KEPT[1])).sum())
        if many(broken, len(useful), 0.25):
            seen = (
                f"a step of {FOLLOWED:g} radii along the gradient changes the margin by a median of "
                f"{float(kept.median()):.2g} times what the gradient promises"
            )
            found.append(Finding.known("shattered-gradients", seen, broken, len(useful)))
    return found


def _flat(probe: Probe, images: Tensor, logits: Tensor, seeds: Tensor, zero: Tensor) -> Finding:
    """Rounded inputs do not feel a change far below one grey level, upwards or downwards; other flat networks do."""
    shift = TINY * noise.uniform(seeds, 0, images.shape[1:]).to(images)
    up, down = (largest(probe.logits(images + sign * shift) - logits) == 0 for sign in (1, -1))
    flat, unmoved = int(zero.sum()), int((zero & (up | down)).sum())
    none = "" if probe.connected else " (the outputs have no gradient by the image at all)"
    if 2 * unmoved >= len(images):
        seen = f"the input gradient is zero{none}, and a change of {TINY:g} in every pixel does not reach the outputs"
        return Finding.known("quantised-input", seen, unmoved, len(images))
    return Finding.known("zero-gradients", f"the input gradient is zero{none}", flat, len(images))


def _promise_kept(
    probe: Probe, images: Tensor, labels: Tensor, values: Tensor, gradient: Tensor, threat: Threat
) -> Tensor:
    """Change of the margin along the gradient over what its slope predicts, ``[n]``: 1 for a straight one."""
    step = threat.project(images + FOLLOWED * threat.epsilon * threat.ascent(gradient), images) - images
    promised = (step * gradient).flatten(1).sum(1)
    return (margin(probe.logits(images + step), labels) - values) / promised
