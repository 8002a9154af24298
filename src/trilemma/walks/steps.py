"""Steepest ascent of an objective inside a ball (attacks), and descent of an energy inside [0, 1] (samplers)."""

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
    """Maximises an objective: ``x <- project(x + step_size * ascent(gradient))``, ``steps`` times.

    Call it inside :func:`trilemma.classifier.contexts.inner_loop`.

    Args:
        clf: the classifier that ``objective`` uses.
        start: initial images, ``[N, C, H, W]``.
        clean: centres of the balls, ``[N, C, H, W]``.
        threat: norm and radius.
        objective: see :func:`trilemma.walks.walk.walk`.
        steps: number of steps.
        step_size: pixel units; factor of the sign (linf) or of the normalised gradient (l2).
        project: project onto the ball and [0, 1] after each step.
        clip: without ``project``, clip to [0, 1] after each step.
        step_rule: replaces steepest ascent; ``step_size`` then has no effect.
        seeds: int64 ``[N]``, one per image, for step rules that draw random numbers.
        stop, callback: see :func:`trilemma.walks.walk.walk`.

    Returns:
        The final images, ``[N, C, H, W]``, detached.
    """

    def steepest(walkers: Walkers, gradient: Tensor) -> Tensor:
        return threat.climbed(walkers.images, gradient, step_size)

    # The images of another rule may be a tensor that it keeps.
    own = step_rule is None

    def constraint(images: Tensor, index: Tensor) -> Tensor:
        if project:
            return (threat.project_ if own else threat.project)(images, subset(clean, index))
        if clip:
            return images.clamp_(0.0, 1.0) if own else images.clamp(0.0, 1.0)
        return images

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
    new_images: bool = False,
    stop: Stop | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Moves images by ``step_rule`` along the gradient of an energy, ``steps`` times.

    Call it inside :func:`trilemma.classifier.contexts.inner_loop`.

    Args:
        clf: the classifier that ``energy`` uses.
        images: initial images, ``[N, C, H, W]``.
        energy: an objective, see :func:`trilemma.walks.walk.walk`.
        step_rule: see :func:`trilemma.walks.walk.walk`.
        steps: number of steps.
        seeds: int64 ``[N]``, one per image, for step rules that draw random numbers.
        clean: with ``budget``, the centres of the L2 balls, ``[N, C, H, W]``.
        budget: largest L2 distance to ``clean``, pixel units (counterfactuals).
        clip: clip to [0, 1] after each step.
        new_images: the images that ``step_rule`` returns are a new tensor, which may be written on.
        stop, callback: see :func:`trilemma.walks.walk.walk`.

    Returns:
        The final images, ``[N, C, H, W]``, detached.
    """

    def constraint(stepped: Tensor, index: Tensor) -> Tensor:
        if clean is not None and budget is not None:
            centre = subset(clean, index)
            delta = stepped - centre
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (stepped.dim() - 1))
            stepped = centre + delta * (budget / length).clamp_max(1.0)
        if clip:
            return stepped.clamp_(0.0, 1.0) if new_images else stepped.clamp(0.0, 1.0)
        return stepped

    return walk(clf, images, energy, step_rule, constraint, steps, seeds=seeds, stop=stop, callback=callback)
