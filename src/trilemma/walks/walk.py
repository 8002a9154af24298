"""A walk on the energy landscape: the one engine that moves images, for attacks and samplers alike.

A walk is an objective, a step rule, a constraint, and perhaps a stopping rule. Only input gradients
are computed. An image that has arrived leaves the batch (compaction), so the work falls with the
number still on the way; its path does not depend on who else is in the batch, since all of its
state and its noise are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trilemma import noise
from trilemma.classifier.contexts import batch_norm_trains
from trilemma.errors import ConfigError


@dataclass
class Walkers:
    """The images still on the way; every tensor has one row per image.

    Attributes:
        images: ``[n, C, H, W]``.
        index: int64 ``[n]``, the row of each in the batch that was handed in.
        step: number of steps done.
        seeds: int64 ``[n]`` or ``None``.
        values: the objective at ``images``, ``[n]``, detached; ``None`` before the first step.
        state: what a step rule keeps between steps (momentum), one row per image, compacted along.
    """

    images: Tensor
    index: Tensor
    step: int = 0
    seeds: Tensor | None = None
    values: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)

    def normal(self) -> Tensor:
        """N(0, 1) noise of this step for each image, shaped like ``images``."""
        if self.seeds is None:
            raise ConfigError("walk: a noisy step needs seeds, one per image")
        return noise.normal(self.seeds, self.step + 1, self.images.shape[1:]).to(self.images)

    def uniform(self) -> Tensor:
        """One U(0, 1) number of this step for each image, ``[n]``, independent of :meth:`normal`."""
        if self.seeds is None:
            raise ConfigError("walk: a random step needs seeds, one per image")
        # the complement: a stream of its own beside that of the normal noise
        return noise.uniform(~self.seeds, self.step + 1, (1,))[:, 0].to(self.images)

    def keep(self, rows: Tensor) -> None:
        """Leaves only the walkers of ``rows`` (int64) in the batch."""
        self.values = None if self.values is None else self.values[rows]
        self.images, self.index = self.images[rows], self.index[rows]
        self.seeds = None if self.seeds is None else self.seeds[rows]
        self.state = {name: value[rows] for name, value in self.state.items()}


# values [n] and, if the stopping rule wants them, logits [n, K] of the walkers
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
StepRule = Callable[[Walkers, Tensor], Tensor]
Constraint = Callable[[Tensor, Tensor], Tensor]
Stop = Callable[[Tensor, Tensor, Tensor], Tensor]
Callback = Callable[[dict[str, Any]], None]


def input_gradient(values: Tensor, images: Tensor, *, retain_graph: bool = False) -> Tensor:
    """The gradient of each value by its own image, ``[n, C, H, W]``.

    Args:
        values: ``[n]``, made from ``images`` row by row.
        images: ``[n, C, H, W]``, which requires gradients.
        retain_graph: for another gradient from the same forward pass.

    Raises:
        ConfigError: the values do not come from the images by anything that can be differentiated.
    """
    gradient: Tensor | None = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), images, retain_graph=retain_graph, allow_unused=True)
    if gradient is None:
        raise ConfigError(
            "classifier: its logits have no gradient by the image, so no attack or sampler can follow one; take "
            "torch.no_grad(), detach() and NumPy out of the network's forward, or use trilemma.attacks.square, which "
            "needs no gradient"
        )
    return gradient


def walk(
    network: nn.Module,
    images: Tensor,
    objective: Objective,
    step_rule: StepRule,
    constraint: Constraint,
    steps: int,
    *,
    seeds: Tensor | None = None,
    stop: Stop | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Moves each image ``steps`` times, or until ``stop`` says it has arrived.

    Call it inside :func:`trilemma.classifier.contexts.inner_loop`, so that no weight gradient is computed.

    Args:
        network: only asked whether its BatchNorm layers are in train mode.
        images: starts, ``[N, C, H, W]``.
        objective: ``(images [n], index [n]) -> (values [n], logits [n, K])``; the gradient of the sum
            of the values is handed to the step rule. ``index`` points into the original batch.
        step_rule: ``(walkers, gradient) -> new images``, before the constraint.
        constraint: ``(images, index) -> images``.
        steps: number of steps; 0 returns the starts.
        seeds: int64 ``[N]``, one noise seed per image, for noisy rules.
        stop: ``(values, logits, index) -> bool [n]``, asked before each step; arrived images leave the batch.
        callback: called after each step with ``step``, ``images``, ``index``, and the ``values`` and ``gradient``
            of before the step, all detached.

    Returns:
        The final images, ``[N, C, H, W]``, detached, in the order handed in.

    Raises:
        ConfigError: ``stop`` under train-mode BatchNorm, where a leaving image would change the others; values
            without a gradient by the image.
    """
    if stop is not None and batch_norm_trains(network):
        raise ConfigError(
            "walk: images cannot leave the batch while BatchNorm is in train mode; use mode 'eval'"
        )
    if images.is_meta:
        stop = None  # shapes alone are propagated: there are no values to stop by
    index = torch.arange(len(images), device=images.device)
    walkers = Walkers(images.detach(), index, seeds=seeds)
    final = None if stop is None else walkers.images.clone()
    for step in range(steps):
        walkers.step = step
        with torch.enable_grad():
            here = walkers.images.detach().requires_grad_()  # a new one: a callback may have kept the old
            values, logits = objective(here, walkers.index)
            gradient = input_gradient(values, here)
        walkers.images, walkers.values = here.detach(), values.detach()
        with torch.no_grad():
            if stop is not None and final is not None:
                arrived = stop(values.detach(), logits.detach(), walkers.index)
                if bool(arrived.any()):
                    final[walkers.index[arrived]] = walkers.images[arrived]
                    rows = (~arrived).nonzero().squeeze(1)
                    walkers.keep(rows)
                    gradient, values = gradient[rows], values[rows]
                    if not len(rows):
                        return final
            walkers.images = constraint(step_rule(walkers, gradient), walkers.index)
        if callback is not None:
            told = {"images": walkers.images, "values": values.detach(), "gradient": gradient}
            callback({"step": step, "index": walkers.index, **told})
    if final is None:
        return walkers.images
    final[walkers.index] = walkers.images
    return final
