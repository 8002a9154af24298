"""Attacks that should be ordered and are not: what hides gradients shows where the weaker attack wins."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.attacks.margins import is_wrong, margin
from trilemma.attacks.square import search as square_search
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Loss, Probe, clearly_more, climb, largest, many
from trilemma.threat import Threat

STEPS = 10
QUERIES, ASKED = 60, 20  # of Square, and standing images it is tried on
UNBOUNDED = 16  # standing images


@dataclass
class Battery:
    """Which of the correctly classified images each attack broke, bool ``[n]``.

    Attributes:
        cross_entropy: PGD on it; ``margin``: PGD on the margin, for what that left.
        blind: the gradient of the cross-entropy at the clean image is zero, that of the margin is not asked.
        climbed: the margin rose on the way, true for broken ones.
        black_box: Square, on the images of ``asked`` only; ``unbounded``: on those of ``free`` only.
    """

    one_step: Tensor
    noise: Tensor
    cross_entropy: Tensor
    margin: Tensor
    blind: Tensor
    climbed: Tensor
    asked: Tensor
    black_box: Tensor
    free: Tensor
    unbounded: Tensor

    @property
    def white_box(self) -> Tensor:
        return self.cross_entropy | self.margin


@torch.no_grad()
def run_battery(probe: Probe, images: Tensor, labels: Tensor, seeds: Tensor, threat: Threat) -> Battery:
    """Every attack of the lint on images that are classified correctly, ``[n, C, H, W]``."""
    _, _, gradient = probe.gradient(images, labels, energies.cross_entropy)
    stepped = threat.project(
        images + threat.epsilon * threat.ascent(torch.nan_to_num(gradient, 0.0, 0.0, 0.0)), images
    )
    one_step = is_wrong(probe.logits(stepped), labels)

    def pgd(rows: Tensor, stream: int, loss: Loss) -> tuple[Tensor, Tensor]:
        start = threat.random_start(images[rows], noise.derive(seeds[rows], stream))
        done = climb(
            probe, start, images[rows], labels[rows], threat, loss, STEPS, lambda _: threat.epsilon / 4
        )
        return done.broken, done.broken | (done.last > done.first)

    everyone = torch.arange(len(images), device=images.device)
    none = torch.zeros_like(one_step)
    cross_entropy, _ = pgd(everyone, 1, energies.cross_entropy)
    standing = (~cross_entropy).nonzero().squeeze(1)
    by_margin, climbed = none.clone(), ~none
    if len(standing):
        by_margin[standing], climbed[standing] = pgd(standing, 2, margin)
    standing = (~(cross_entropy | by_margin)).nonzero().squeeze(1)
    asked, free = standing[:ASKED], standing[:UNBOUNDED]
    return Battery(
        one_step,
        _noise(probe, images, labels, seeds, threat),
        cross_entropy,
        by_margin,
        largest(gradient) == 0,
        climbed,
        asked,
        _black_box(probe, images[asked], labels[asked], seeds[asked], threat),
        free,
        _unbounded(probe, images[free], labels[free], threat),
    )


def _noise(probe: Probe, images: Tensor, labels: Tensor, seeds: Tensor, threat: Threat) -> Tensor:
    """One uniform draw from the ball, and one from its surface."""
    draws = [threat.random_start(images, noise.derive(seeds, 3))]
    direction = noise.normal(noise.derive(seeds, 4), 0, images.shape[1:]).to(images)
    draws.append(threat.project(images + threat.epsilon * threat.ascent(direction), images))
    return torch.stack([is_wrong(probe.logits(draw), labels) for draw in draws]).any(0)


def _black_box(probe: Probe, images: Tensor, labels: Tensor, seeds: Tensor, threat: Threat) -> Tensor:
    if not len(images):
        return torch.zeros_like(labels, dtype=torch.bool)
    own = noise.derive(seeds, 5)
    reached = square_search(probe.oracle, images, labels, threat, own, queries=QUERIES)
    return is_wrong(probe.logits(reached), labels)


def _unbounded(probe: Probe, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    """Any image of [0, 1] is allowed; the steps begin at a sixth of the range and shrink."""
    if not len(images):
        return torch.zeros_like(labels, dtype=torch.bool)
    reach = 1.0 if threat.norm == "linf" else sqrt(images[0].numel())
    whole = Threat(threat.norm, reach)
    sizes = [reach * (0.16 - 0.15 * step / STEPS) for step in range(STEPS)]
    return climb(probe, images, images, labels, whole, margin, STEPS, lambda step: sizes[step]).broken


def battery_findings(battery: Battery) -> list[Finding]:
    """What cannot be if gradients lead the way."""
    white, count = battery.white_box, len(battery.noise)
    found = []

    def say(name: str, seen: str, seen_on: int, of: int = count) -> None:
        found.append(Finding.known(name, seen, seen_on, of))

    hidden = int((battery.margin & battery.blind).sum())
    if many(hidden, count, 0.02):
        seen = (
            "the gradient of the cross-entropy is zero, and an attack on the margin breaks what it does not"
        )
        say("saturated-logits", seen, hidden)
    black = int(battery.black_box.sum())
    if many(black, len(battery.asked), 0.1, at_least=3):
        seen = f"Square with {QUERIES} queries breaks images that {STEPS} gradient steps on two losses do not"
        say("black-box-better", seen, black, len(battery.asked))
    for name, weaker, what in (
        ("one-step-better", battery.one_step, "one gradient step"),
        ("noise-better", battery.noise, "two draws of random noise"),
    ):
        more, fewer = int((weaker & ~white).sum()), int((white & ~weaker).sum())
        if clearly_more(more, fewer):
            say(name, f"{what} breaks images that {STEPS} steps do not (the reverse: {fewer})", more)
    stuck, standing = int((~battery.climbed).sum()), int((~white).sum())
    if many(stuck, standing, 0.1):
        seen = f"the loss is no higher after {STEPS} steps than before"
        say("loss-not-increasing", seen, stuck, standing)
    left = int((~battery.unbounded).sum())
    if many(left, len(battery.free), 0.05):
        say(
            "unbounded-attack-fails",
            f"{STEPS} steps through all of [0, 1] do not break them",
            left,
            len(battery.free),
        )
    return found
