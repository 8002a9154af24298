"""Checks of a user's own attack: whether its images are in the ball, its units, and its strength."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trilemma.attacks.margins import is_wrong
from trilemma.classifier.classifier import TOLERANCE, Classifier
from trilemma.errors import ImageError
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, clearly_more, is_frequent
from trilemma.threat import Threat

Attack = Callable[[Classifier, Tensor, Tensor, Threat], Tensor]

# Relative tolerance for the rounding of distances.
SLACK = 1e-3
# Attacks end on the surface of their ball. If most distances agree up to this share, they are taken for its radius.
RADIUS_TOLERANCE = 0.02
# Significance level of the comparison with PGD.
CHANCE = 1e-3


def run_attack(attack: Attack, clf: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    """The adversarial images that the attack returns, detached.

    Raises:
        ImageError: it does not return a tensor of the images' shape.
    """
    adversarial = attack(clf, images.clone(), labels.clone(), threat)
    if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
        kind = list(adversarial.shape) if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise ImageError(f"lint: the attack returned {kind}; return adversarial images {list(images.shape)}")
    return adversarial.detach().to(images)


def budget_findings(adversarial: Tensor, images: Tensor, threat: Threat) -> list[Finding]:
    """Findings about images outside the ball or [0, 1], and about a radius that differs from that of ``threat``."""
    findings = []
    radii = _distance(adversarial, images, threat) / threat.epsilon
    low, high = adversarial.flatten(1).amin(1), adversarial.flatten(1).amax(1)
    outside_box = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))
    outside_ball = ~(radii <= 1 + SLACK)
    if outside := int((outside_ball | outside_box).sum()):
        observation = f"adversarial images lie up to {float(radii.max()):.3g} radii away"
        if bool(outside_box.any()):
            observation += f" and span [{float(low.min()):.3g}, {float(high.max()):.3g}]"
        findings.append(Finding.from_catalogue("budget-ignored", observation, outside, len(images)))
    if bool(outside_box.any()) and float(low.min()) >= -1 - TOLERANCE and float(high.max()) <= 1 + TOLERANCE:
        halved = _distance((adversarial + 1) / 2, images, threat)
        if bool((halved <= 2 * threat.epsilon).all()):
            observation = (
                "adversarial images span [-1, 1], and are near the clean ones after rescaling to [0, 1]"
            )
            return [
                *findings,
                Finding.from_catalogue("radius-units", observation, int(outside_box.sum()), len(images)),
            ]
    moved = radii[(radii > 1e-3) & torch.isfinite(radii)]
    if len(moved):
        typical = float(moved.median())
        same = int(((moved / typical - 1).abs() < RADIUS_TOLERANCE).sum())
        if abs(typical - 1) > 0.05 and is_frequent(same, len(moved), 0.5):
            observation = f"adversarial images lie at {typical:.3g} times the radius"
            findings.append(Finding.from_catalogue("radius-units", observation, same, len(images)))
    return findings


def strength_findings(
    probe: Probe, adversarial: Tensor, images: Tensor, labels: Tensor, threat: Threat, broken_by_pgd: Tensor
) -> list[Finding]:
    """A finding if the attack breaks clearly fewer images than a short PGD.

    Args:
        adversarial: images that the attack returned, ``[n, C, H, W]``.
        broken_by_pgd: bool ``[n]``.
    """
    inside = threat.contains(adversarial, images, 1e-5)
    broken = is_wrong(probe.logits(adversarial.clamp(0.0, 1.0)), labels) & inside
    more, fewer = int((broken_by_pgd & ~broken).sum()), int((broken & ~broken_by_pgd).sum())
    if not clearly_more(more, fewer, chance=CHANCE):
        return []
    observation = f"ten steps of PGD break images that this attack does not (the reverse: {fewer})"
    return [Finding.from_catalogue("attack-too-weak", observation, more, len(images))]


def _distance(adversarial: Tensor, images: Tensor, threat: Threat) -> Tensor:
    order = torch.inf if threat.norm == "linf" else 2.0
    distance: Tensor = torch.linalg.vector_norm((adversarial - images).flatten(1), ord=order, dim=1)
    return distance
