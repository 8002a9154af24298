"""The walk that every sampler shares: down an energy, inside the box."""

from __future__ import annotations

from torch import Tensor

from trilemma.attacks.objectives import rows
from trilemma.classifier import Classifier
from trilemma.walk import Callback, Objective, StepRule, Stop, walk


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
            centre = rows(clean, index)
            delta = moved - centre
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (moved.dim() - 1))
            moved = centre + delta * (budget / length).clamp_max(1.0)
        return moved.clamp(0.0, 1.0) if clip else moved

    return walk(clf, images, energy, step_rule, constraint, steps, seeds=seeds, stop=stop, callback=callback)
