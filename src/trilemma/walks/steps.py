"""The two walks: steepest ascent inside a ball (attacks), descent of an energy inside the box (samplers)."""

from __future__ import annotations

from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.threat import Threat
from trilemma.walks.objectives import subset
from trilemma.walks.walk import Callback, Objective, StepRule, Stop, Walkers, walk


def ascend(
    clf: Classifier,
    start: Tensor,
    clean: Tensor,
    threat: Threat,
    objective: Objective,
    steps: int,
    step_size: float,
    *,
    project: bool = True,
    clip: bool = True,
    step_rule: StepRule | None = None,
    seeds: Tensor | None = None,
    stop: Stop | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """``x <- project(x + step_size * ascent(gradient))``, ``steps`` times.

    Args:
        clf: inside :func:`trilemma.classifier.contexts.inner_loop`.
        start: where the walk begins, ``[N, C, H, W]``.
        clean: the centres of the balls, ``[N, C, H, W]``.
        step_size: pixel units; the sign (linf) or the normalised gradient (l2) is multiplied by it.
        project: keep to the ball and the box; without it only to the box [0, 1].
        clip: without it and without ``project``, not even to the box.
        step_rule: another rule than steepest ascent; ``step_size`` then has no effect.
        seeds: int64 ``[N]``, one per image, for rules that draw random numbers.
        stop, callback: as of :func:`trilemma.walks.walk.walk`.
    """

    def steepest(walkers: Walkers, gradient: Tensor) -> Tensor:
        return walkers.images + step_size * threat.ascent(gradient)

    def constraint(images: Tensor, index: Tensor) -> Tensor:
        if project:
            return threat.project(images, subset(clean, index))
        return images.clamp(0.0, 1.0) if clip else images

    rule = step_rule or steepest
    return walk(clf, start, objective, rule, constraint, steps, seeds=seeds, stop=stop, callback=callback)


def descend(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    step_rule: StepRule,
    steps: int,
    *,
    seeds: Tensor | None = None,
    clean: Tensor | None = None,
    budget: float | None = None,
    clip: bool = True,
    stop: Stop | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Moves images by ``step_rule``, clipping to [0, 1] after each step unless ``clip`` is off.

    Args:
        clean: with ``budget``, the images to stay near, ``[N, C, H, W]``.
        budget: largest L2 distance to ``clean``, pixel units (counterfactuals).
    """

    def constraint(moved: Tensor, index: Tensor) -> Tensor:
        if clean is not None and budget is not None:
            centre = subset(clean, index)
            delta = moved - centre
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (moved.dim() - 1))
            moved = centre + delta * (budget / length).clamp_max(1.0)
        return moved.clamp(0.0, 1.0) if clip else moved

    return walk(clf, images, energy, step_rule, constraint, steps, seeds=seeds, stop=stop, callback=callback)
