"""A user's own attack: does it stay in the ball, in the units of the threat, and is it worth its name?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trilemma.attacks.margins import is_wrong
from trilemma.classifier.classifier import TOLERANCE, Classifier
from trilemma.errors import ImageError
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, clearly_more, many
from trilemma.threat import Threat

Attack = Callable[[Classifier, Tensor, Tensor, Threat], Tensor]

# Rounding of the distance, relative.
SLACK = 1e-3
# Attacks end on the surface of their ball: most images at one distance, to this share, tell its radius.
PINNED = 0.02
CHANCE = 1e-3


def run_attack(attack: Attack, clf: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    """What the attack returns, detached.

    Raises:
        ImageError: not a tensor of the images' shape.
    """
    reached = attack(clf, images.clone(), labels.clone(), threat)
    if not isinstance(reached, Tensor) or reached.shape != images.shape:
        kind = list(reached.shape) if isinstance(reached, Tensor) else type(reached).__name__
        raise ImageError(f"lint: the attack returned {kind}; return adversarial images {list(images.shape)}")
    return reached.detach().to(images)


def budget_findings(reached: Tensor, images: Tensor, threat: Threat) -> list[Finding]:
    """Images outside the ball or the box, and a radius that is not the one asked for."""
    found = []
    radii = _distance(reached, images, threat) / threat.epsilon
    low, high = reached.flatten(1).amin(1), reached.flatten(1).amax(1)
    off_box = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))
    off_ball = ~(radii <= 1 + SLACK)
    if outside := int((off_ball | off_box).sum()):
        seen = f"adversarial images lie up to {float(radii.max()):.3g} radii away"
        if bool(off_box.any()):
            seen += f" and span [{float(low.min()):.3g}, {float(high.max()):.3g}]"
        found.append(Finding.known("budget-ignored", seen, outside, len(images)))
    if bool(off_box.any()) and float(low.min()) >= -1 - TOLERANCE and float(high.max()) <= 1 + TOLERANCE:
        halved = _distance((reached + 1) / 2, images, threat)
        if bool((halved <= 2 * threat.epsilon).all()):
            seen = "adversarial images span [-1, 1], and near the clean ones when brought back to [0, 1]"
            return [*found, Finding.known("radius-units", seen, int(off_box.sum()), len(images))]
    moved = radii[(radii > 1e-3) & torch.isfinite(radii)]
    if len(moved):
        typical = float(moved.median())
        same = int(((moved / typical - 1).abs() < PINNED).sum())
        if abs(typical - 1) > 0.05 and many(same, len(moved), 0.5):
            seen = f"adversarial images lie at {typical:.3g} times the radius"
            found.append(Finding.known("radius-units", seen, same, len(images)))
    return found


def strength_findings(
    probe: Probe, reached: Tensor, images: Tensor, labels: Tensor, threat: Threat, ours: Tensor
) -> list[Finding]:
    """An attack that breaks clearly fewer than a short PGD; ``ours`` says which of the images that broke."""
    inside = threat.contains(reached, images, 1e-5)
    theirs = is_wrong(probe.logits(reached.clamp(0.0, 1.0)), labels) & inside
    more, fewer = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if not clearly_more(more, fewer, chance=CHANCE):
        return []
    seen = f"ten steps of PGD break images that this attack does not (the reverse: {fewer})"
    return [Finding.known("attack-too-weak", seen, more, len(images))]


def _distance(reached: Tensor, images: Tensor, threat: Threat) -> Tensor:
    order = torch.inf if threat.norm == "linf" else 2.0
    distance: Tensor = torch.linalg.vector_norm((reached - images).flatten(1), ord=order, dim=1)
    return distance
