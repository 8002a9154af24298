"""Attack orderings that are impossible unless gradients are masked: a weaker attack breaks more images."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.attacks.margins import is_wrong, margin
from trilemma.attacks.square import search as square_search
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Loss, Probe, ascend, clearly_more, is_frequent, max_abs
from trilemma.threat import Threat

# Gradient steps of PGD.
STEPS = 10
# Queries of Square, and the largest number of robust images that it attacks.
QUERIES, MAX_BLACK_BOX = 60, 20
# PGD on the margin is better than PGD on the cross-entropy if it breaks that many more images, at this significance
# level. Networks that are unsure of most images, by adversarial training or little training, can show that too, so it
# is a finding only if the outputs are bounded, or their scale is off.
MIN_BETTER, CHANCE_BETTER = 4, 0.12
# Largest number of robust images that are attacked without a bound.
MAX_UNBOUNDED = 16


@dataclass
class Battery:
    """Results of the attacks on ``n`` correctly classified images, bool ``[n]`` unless stated otherwise.

    Robust images here are those that neither PGD on the cross-entropy nor PGD on the margin breaks.

    Attributes:
        one_step: broken by one gradient step on the cross-entropy.
        noise: broken by random noise.
        cross_entropy: broken by PGD on the cross-entropy.
        margin: broken by PGD on the margin, which attacks only the images that the former did not break.
        margin_fails: number of images that PGD on the cross-entropy breaks and PGD on the margin does not; measured
            only if ``margin`` has at least MIN_BETTER images, else 0.
        zero_gradient: the gradient of the cross-entropy at the clean image is zero.
        increased: PGD on the margin raised the loss or broke the image; true for images that it did not attack.
        black_box_index: int64, the robust images that Square attacked.
        black_box: broken by Square; one entry per image of ``black_box_index``.
        unbounded_index: int64, the robust images that were attacked without a bound.
        unbounded: broken without a bound; one entry per image of ``unbounded_index``.
    """

    one_step: Tensor
    noise: Tensor
    cross_entropy: Tensor
    margin: Tensor
    margin_fails: int
    zero_gradient: Tensor
    increased: Tensor
    black_box_index: Tensor
    black_box: Tensor
    unbounded_index: Tensor
    unbounded: Tensor

    @property
    def white_box(self) -> Tensor:
        """Images broken by either PGD attack."""
        return self.cross_entropy | self.margin


@torch.no_grad()
def run_battery(probe: Probe, images: Tensor, labels: Tensor, seeds: Tensor, threat: Threat) -> Battery:
    """Runs all attacks of the lint on correctly classified images, ``[n, C, H, W]``."""
    _, _, gradient = probe.gradient(images, labels, energies.cross_entropy)
    stepped = threat.project(
        images + threat.epsilon * threat.ascent(torch.nan_to_num(gradient, 0.0, 0.0, 0.0)), images
    )
    one_step = is_wrong(probe.logits(stepped), labels)

    def pgd(index: Tensor, stream: int, loss: Loss) -> tuple[Tensor, Tensor]:
        start = threat.random_start(images[index], noise.derive(seeds[index], stream))
        result = ascend(
            probe, start, images[index], labels[index], threat, loss, STEPS, lambda _: threat.epsilon / 4
        )
        return result.broken, result.broken | (result.last > result.first)

    every_index = torch.arange(len(images), device=images.device)
    none = torch.zeros_like(one_step)
    cross_entropy, _ = pgd(every_index, 1, energies.cross_entropy)
    robust = (~cross_entropy).nonzero().squeeze(1)
    by_margin, increased = none.clone(), ~none
    if len(robust):
        by_margin[robust], increased[robust] = pgd(robust, 2, margin)
    margin_fails = 0
    if int(by_margin.sum()) >= MIN_BETTER and bool(cross_entropy.any()):
        margin_fails = int((~pgd(cross_entropy.nonzero().squeeze(1), 2, margin)[0]).sum())
    robust = (~(cross_entropy | by_margin)).nonzero().squeeze(1)
    black_box_index, unbounded_index = robust[:MAX_BLACK_BOX], robust[:MAX_UNBOUNDED]
    return Battery(
        one_step,
        _noise(probe, images, labels, seeds, threat),
        cross_entropy,
        by_margin,
        margin_fails,
        max_abs(gradient) == 0,
        increased,
        black_box_index,
        _black_box(probe, images[black_box_index], labels[black_box_index], seeds[black_box_index], threat),
        unbounded_index,
        _unbounded(probe, images[unbounded_index], labels[unbounded_index], threat),
    )


def _noise(probe: Probe, images: Tensor, labels: Tensor, seeds: Tensor, threat: Threat) -> Tensor:
    """Images that are broken by a uniform draw from the ball or by one from its surface, bool ``[n]``."""
    draws = [threat.random_start(images, noise.derive(seeds, 3))]
    direction = noise.normal(noise.derive(seeds, 4), 0, images.shape[1:]).to(images)
    draws.append(threat.project(images + threat.epsilon * threat.ascent(direction), images))
    return torch.stack([is_wrong(probe.logits(draw), labels) for draw in draws]).any(0)


def _black_box(probe: Probe, images: Tensor, labels: Tensor, seeds: Tensor, threat: Threat) -> Tensor:
    """Images that Square breaks, bool ``[n]``."""
    if not len(images):
        return torch.zeros_like(labels, dtype=torch.bool)
    square_seeds = noise.derive(seeds, 5)
    adversarial = square_search(probe.oracle, images, labels, threat, square_seeds, queries=QUERIES)
    return is_wrong(probe.logits(adversarial), labels)


def _unbounded(probe: Probe, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    """Images that PGD breaks when every image in [0, 1] is allowed, bool ``[n]``.

    The step size decreases from 0.16 to 0.025 of the largest possible distance.
    """
    if not len(images):
        return torch.zeros_like(labels, dtype=torch.bool)
    diameter = 1.0 if threat.norm == "linf" else sqrt(images[0].numel())
    unbounded = Threat(threat.norm, diameter)
    sizes = [diameter * (0.16 - 0.15 * step / STEPS) for step in range(STEPS)]
    return ascend(probe, images, images, labels, unbounded, margin, STEPS, lambda step: sizes[step]).broken


def battery_findings(battery: Battery, bounded: bool, factor: float) -> list[Finding]:
    """Findings for attack orderings that are impossible unless gradients are masked.

    Args:
        bounded: whether the outputs are bounded, as of a sigmoid.
        factor: :func:`trilemma.evaluation.lint.scale.missing_factor` of the logits.
    """
    white_box, count = battery.white_box, len(battery.noise)
    findings = []

    def add(name: str, observation: str, images: int, of: int = count) -> None:
        findings.append(Finding.from_catalogue(name, observation, images, of))

    findings += _loss_findings(battery, bounded, factor)
    black_box = int(battery.black_box.sum())
    if is_frequent(black_box, len(battery.black_box_index), 0.1, at_least=3):
        observation = (
            f"Square with {QUERIES} queries breaks images that {STEPS} gradient steps on two losses do not"
        )
        add("black-box-better", observation, black_box, len(battery.black_box_index))
    for name, weaker, description in (
        ("one-step-better", battery.one_step, "one gradient step"),
        ("noise-better", battery.noise, "two draws of random noise"),
    ):
        more, fewer = int((weaker & ~white_box).sum()), int((white_box & ~weaker).sum())
        if clearly_more(more, fewer):
            add(name, f"{description} breaks images that {STEPS} steps do not (the reverse: {fewer})", more)
    not_increased, robust = int((~battery.increased).sum()), int((~white_box).sum())
    if is_frequent(not_increased, robust, 0.1):
        observation = f"the loss is no higher after {STEPS} steps than before"
        add("loss-not-increasing", observation, not_increased, robust)
    unbroken = int((~battery.unbounded).sum())
    if is_frequent(unbroken, len(battery.unbounded_index), 0.05):
        observation = f"{STEPS} steps through all of [0, 1] do not break them"
        add("unbounded-attack-fails", observation, unbroken, len(battery.unbounded_index))
    return findings


def _loss_findings(battery: Battery, bounded: bool, factor: float) -> list[Finding]:
    """At most one finding, if the margin is clearly the better loss of an attack than the cross-entropy."""
    count, better = len(battery.noise), int(battery.margin.sum())
    saturated = int((battery.margin & battery.zero_gradient).sum())
    if is_frequent(saturated, count, 0.02):
        observation = (
            "the gradient of the cross-entropy is zero, and an attack on the margin breaks images that one on the "
            "cross-entropy does not"
        )
        return [Finding.from_catalogue("saturated-logits", observation, saturated, count)]
    small = bounded or factor > 1
    if not (small or factor < 1) or not clearly_more(better, battery.margin_fails, MIN_BETTER, CHANCE_BETTER):
        return []
    observation = (
        f"{STEPS} steps on the margin break images that {STEPS} steps on the cross-entropy do not (the reverse: "
        f"{battery.margin_fails})"
    )
    if factor != 1:
        observation += f", and the logits fit the labels best after multiplication by {factor:.2g}"
    return [
        Finding.from_catalogue("squashed-logits" if small else "saturated-logits", observation, better, count)
    ]
