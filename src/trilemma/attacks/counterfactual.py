"""Counterfactual images: moved to a target class inside a ball, or to the least distance that a bisection finds.

Both are projected gradient steps of unit length in the norm, as in :mod:`trilemma.attacks.pgd`, with one radius per
image. The projection is onto the intersection of ball and box: for L2 a projection onto one after the other stops short
of the radius as soon as pixels reach 0 or 1, and a least distance would be overestimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.attacks.margins import margin
from trilemma.classifier.classifier import Classifier
from trilemma.threat import Threat
from trilemma.walks import objectives
from trilemma.walks.objectives import subset
from trilemma.walks.walk import Objective, Stop, Walkers, walk

ENERGIES = ("ce", "joint")
# Length of all steps of a walk together, in radii. The length of a step falls linearly to 0.
TRAVEL = 10.0
# Factor of the velocity at every step.
ZETA = 0.75
# The first radius of a search, as a fraction of the largest distance in the box.
FIRST = 1 / 64
# Least margin of the target class, as a fraction of the largest logit: rounding, which depends on the size of a batch,
# does not undo a success.
MARGIN = 1e-5
# Limit of the radii of a search per image; a bisection of the largest distance reaches the precision of float32 before.
MOST_RADII = 64

# (images [N, C, H, W], logits [N, K]) of each image of a walk, detached.
Observer = Callable[[Tensor, Tensor], None]


@dataclass
class Best:
    """The best image of each walk so far: one of the target class before others, then that of the lowest energy.

    Attributes:
        targets: int64 ``[N]``.
        images: ``[N, C, H, W]``.
        success: bool ``[N]``, whether the image is of the target class.
        values: the negative energy of the image, ``[N]``.
        steps: int64 ``[N]``, the number of steps after which it was reached.
    """

    targets: Tensor
    images: Tensor
    success: Tensor
    values: Tensor
    steps: Tensor

    @classmethod
    def of(cls, images: Tensor, targets: Tensor) -> Best:
        """Nothing has been offered yet."""
        return cls(
            targets,
            images.clone(),
            torch.zeros_like(targets, dtype=torch.bool),
            torch.full(targets.shape, -torch.inf, dtype=torch.float64, device=targets.device),
            torch.zeros_like(targets),
        )

    def offer(self, step: int, images: Tensor, values: Tensor, logits: Tensor) -> None:
        """Replaces the images that are worse than those of ``step``."""
        success, values = reaches(logits, self.targets), values.double()
        better = (success & ~self.success) | ((success == self.success) & (values > self.values))
        self.images = torch.where(_per_image(better, images), images, self.images)
        self.success = torch.where(better, success, self.success)
        self.values = torch.where(better, values, self.values)
        self.steps = torch.where(better, step, self.steps)


def within_budget(
    clf: Classifier,
    clean: Tensor,
    targets: Tensor,
    threat: Threat,
    energy: str = "ce",
    steps: int = 50,
    observe: Observer | None = None,
    start: Tensor | None = None,
) -> Best:
    """The best image of a walk that lowers an energy of the target class inside the ball.

    Call it inside :func:`trilemma.classifier.contexts.inner_loop`.

    Args:
        clf: the classifier.
        clean: ``[N, C, H, W]`` in [0, 1], the centres of the balls.
        targets: int64 ``[N]``.
        threat: norm and radius of the balls.
        energy: ``"ce"``, the cross-entropy ``E(x, t) - E(x)``, or ``"joint"``, ``E(x, t)``.
        steps: number of steps; together they are 10 radii long.
        observe: called with the images and logits of every step from 0 (``start``) to ``steps``.
        start: ``[N, C, H, W]`` in the balls, where the walks begin; ``clean`` by default.
    """
    start = clean if start is None else start
    lowered = _objective(clf, targets, energy)
    best, step = Best.of(start, targets), 0

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal step
        values, logits = lowered(images, index)
        best.offer(step, images.detach(), values.detach(), logits.detach())
        if observe is not None:
            observe(images.detach(), logits.detach())
        step += 1
        return values, logits

    radii = torch.full(targets.shape, threat.epsilon, dtype=torch.float64, device=clean.device)
    final = _walk(clf, start, clean, radii, threat.norm, objective, steps)
    with torch.no_grad():
        objective(final, torch.arange(len(final), device=final.device))
    return best


@dataclass(frozen=True)
class Nearest:
    """The result of :func:`least_budget`.

    Attributes:
        images: ``[N, C, H, W]``: of the target class where the search succeeded, otherwise those of the largest radius.
        success: bool ``[N]``.
        failed: float64 ``[N]``, the largest radius below the distance at which the search failed.
    """

    images: Tensor
    success: Tensor
    failed: Tensor


def least_budget(
    clf: Classifier,
    clean: Tensor,
    targets: Tensor,
    norm: str,
    tolerance: float,
    energy: str = "ce",
    steps: int = 50,
    largest: float | None = None,
) -> Nearest:
    """Images of the target class at the least distance, by bisection of the radius of :func:`within_budget`.

    The radius is doubled until a walk succeeds, and then bisected from 0 until the largest radius at which the walk
    failed is within ``tolerance`` of the distance of the nearest success. Every walk begins at the nearest success,
    before there is one at the end of the last walk, projected onto its ball, and ends at the first image of the target
    class. Call it inside :func:`trilemma.classifier.contexts.inner_loop`.

    Args:
        clf, clean, targets, energy: as in :func:`within_budget`; no image of ``clean`` is of its target class.
        norm: ``"linf"`` or ``"l2"``.
        tolerance: pixel units.
        steps: largest number of steps per radius.
        largest: largest radius; by default that of the whole box.
    """
    objective = _objective(clf, targets, energy)
    if largest is None:
        largest = 1.0 if norm == "linf" else math.sqrt(clean[0].numel())
    low = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
    high = torch.full_like(low, torch.inf)
    images = clean.clone()
    for _ in range(MOST_RADII):
        unbounded = high.isinf()
        unfinished = torch.where(unbounded, low < largest, high - low > tolerance)
        index = unfinished.nonzero().squeeze(1)
        if not len(index):
            break
        growing = (2 * low).clamp(FIRST * largest, largest)
        radii = torch.where(unbounded, growing, (low + high) / 2)[index]
        part = _Part(clf, clean[index], targets[index], radii, norm)
        ended, reached = part.search(images[index], _at(objective, index), steps)
        # Rounding in float32 may add to the radius.
        length = torch.minimum(distances(ended, part.clean, norm), radii)
        # The end of a failed walk is of use only as long as there is no success.
        used = reached | unbounded[index]
        images[index] = torch.where(_per_image(used, ended), ended, images[index])
        high[index] = torch.where(reached, length, high[index])
        low[index] = torch.where(reached, low[index], radii)
        # Walks that began without a success may have failed where one that begins near a success does not.
        low = torch.where((unbounded & ~high.isinf()) | (high <= low), 0.0, low)
    return Nearest(images, ~high.isinf(), low)


@dataclass(frozen=True)
class _Part:
    """Some images of a search, each with its radius."""

    clf: Classifier
    clean: Tensor
    targets: Tensor
    radii: Tensor
    norm: str

    def search(self, start: Tensor, objective: Objective, steps: int) -> tuple[Tensor, Tensor]:
        """Final images and whether they are of the target class, of walks that end where they reach it."""

        def stop(values: Tensor, logits: Tensor, index: Tensor) -> Tensor:
            return reaches(logits, subset(self.targets, index))

        start = project(start, self.clean, self.radii, self.norm)
        ended = _walk(self.clf, start, self.clean, self.radii, self.norm, objective, steps, stop)
        with torch.no_grad():
            return ended, reaches(self.clf.logits(ended), self.targets)


def reaches(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each image is of its target class by more than rounding, bool ``[N]``."""
    return -margin(logits, targets) > MARGIN * logits.abs().amax(1)


def _at(objective: Objective, positions: Tensor) -> Objective:
    """The objective of the images at ``positions``."""
    return lambda images, index: objective(images, positions[index])


def _objective(clf: Classifier, targets: Tensor, energy: str) -> Objective:
    """The negative energy, which a walk maximises."""
    if energy == "ce":
        return objectives.targeted_cross_entropy(clf, targets)
    joint = objectives.joint_energy(clf, targets)

    def negative(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        values, logits = joint(images, index)
        return -values, logits

    return negative


def _walk(
    clf: Classifier,
    start: Tensor,
    clean: Tensor,
    radii: Tensor,
    norm: str,
    objective: Objective,
    steps: int,
    stop: Stop | None = None,
) -> Tensor:
    """Final images ``[N, C, H, W]`` of projected steps of steepest ascent with momentum, with one radius per image."""
    # Only its direction of ascent is used, which does not depend on the radius.
    unit = Threat(norm, 1)
    sizes = (radii * (2 * TRAVEL / steps)).to(clean.dtype)

    def step_rule(walkers: Walkers, gradient: Tensor) -> Tensor:
        images = walkers.images
        # Pixels that cannot follow the gradient take no part of the step's length; of most MNIST pixels, the gradient
        # points out of the box.
        stuck = ((gradient > 0) & (images >= 1)) | ((gradient < 0) & (images <= 0))
        velocity = unit.ascent(gradient.masked_fill(stuck, 0.0))
        if walkers.step:
            velocity = velocity + ZETA * walkers.state["velocity"]
        walkers.state["velocity"] = velocity
        lengths = subset(sizes, walkers.index) * (1 - walkers.step / steps)
        return images + _per_image(lengths, images) * unit.ascent(velocity)

    def constraint(images: Tensor, index: Tensor) -> Tensor:
        return project(images, subset(clean, index), subset(radii, index), norm)

    return walk(clf, start, objective, step_rule, constraint, steps, stop=stop)


def project(images: Tensor, clean: Tensor, radii: Tensor, norm: str) -> Tensor:
    """Projects images onto the intersection of a ball around ``clean`` and the box [0, 1].

    For L2 the projection is ``clip(clean + s (images - clean))`` with the largest ``s <= 1`` whose result is in the
    ball. Its squared length is piecewise quadratic in s; the fixed point iteration finds s from the left, and ends when
    no further pixel reaches the box.

    Args:
        images: ``[N, C, H, W]``, also outside [0, 1].
        clean: ``[N, C, H, W]`` in [0, 1].
        radii: float64 ``[N]``, pixel units.
        norm: ``"linf"`` or ``"l2"``.
    """
    delta = images - clean
    if norm == "linf":
        limit = _per_image(radii, delta).to(delta.dtype)
        return clean.add(delta.clamp(-limit, limit)).clamp_(0.0, 1.0)
    size = delta.abs().flatten(1).double()
    # Distance of each pixel to the box in its direction.
    room = torch.where(delta > 0, 1 - clean, clean).flatten(1).double()
    scale = (radii / size.norm(dim=1).clamp_min(1e-30)).clamp_max(1.0)
    clipped_before = torch.full_like(scale, -1.0)
    while True:
        clipped = scale[:, None] * size >= room
        if torch.equal(count := clipped.sum(1).double(), clipped_before):
            break
        clipped_before = count
        rest = (radii.square() - room.square().masked_fill(~clipped, 0.0).sum(1)).clamp_min(0.0)
        free = size.square().masked_fill(clipped, 0.0).sum(1)
        # The scale never falls, also where all pixels are clipped.
        scale = torch.maximum(scale, (rest / free.clamp_min(1e-30)).sqrt().clamp_max(1.0))
    return clean.add(delta * _per_image(scale, delta).to(delta.dtype)).clamp_(0.0, 1.0)


def distances(images: Tensor, clean: Tensor, norm: str) -> Tensor:
    """The distance of each image to ``clean`` in a norm, float64 ``[N]``, pixel units."""
    delta = (images.double() - clean.double()).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Values ``[N]`` shaped to broadcast over ``images``."""
    return values.view(-1, *[1] * (images.dim() - 1))
