"""The loop that moves images along input gradients, shared by all gradient attacks and samplers.

A walk consists of an objective, a step rule, a constraint and optionally a stopping rule. Only gradients with respect
to the images are computed. An image that meets the stopping rule is removed from the batch (compaction), so that the
cost falls with the number of remaining images. The path of an image does not depend on the other images of the batch,
since its state and its noise are per image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trilemma import noise
from trilemma.classifier.contexts import batch_norm_trains
from trilemma.classifier.output import raised
from trilemma.errors import ConfigError


@dataclass
class Walkers:
    """The state of the images that have not met the stopping rule; the first dimension of every tensor is the image.

    Attributes:
        images: ``[n, C, H, W]``.
        index: int64 ``[n]``, the position of each image in the original batch.
        step: number of steps done.
        seeds: int64 ``[n]``, or ``None``.
        values: the objective at ``images``, ``[n]``, detached; ``None`` before the first step.
        state: tensors ``[n, ...]`` that a step rule stores between steps (momentum).
    """

    images: Tensor
    index: Tensor
    step: int = 0
    seeds: Tensor | None = None
    values: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)

    def normal(self) -> Tensor:
        """N(0, 1) noise for this step, shaped like ``images``.

        Raises:
            ConfigError: the walk has no seeds.
        """
        if self.seeds is None:
            raise ConfigError("walk: a noisy step needs seeds, one per image")
        return noise.normal(self.seeds, self.step + 1, self.images.shape[1:]).to(self.images)

    def uniform(self) -> Tensor:
        """One U(0, 1) number per image for this step, ``[n]``, independent of :meth:`normal`.

        Raises:
            ConfigError: the walk has no seeds.
        """
        if self.seeds is None:
            raise ConfigError("walk: a random step needs seeds, one per image")
        # The complement of the seeds gives a random stream that is independent of the one of the normal noise.
        return noise.uniform(~self.seeds, self.step + 1, (1,))[:, 0].to(self.images)

    def select(self, remaining: Tensor) -> None:
        """Removes all images from the batch but those at ``remaining`` (int64)."""
        self.values = None if self.values is None else self.values[remaining]
        self.images, self.index = self.images[remaining], self.index[remaining]
        self.seeds = None if self.seeds is None else self.seeds[remaining]
        self.state = {name: value[remaining] for name, value in self.state.items()}


# (images [n, C, H, W], index [n]) -> (values [n], logits [n, K])
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# (walkers, gradient [n, C, H, W]) -> new images [n, C, H, W]
StepRule = Callable[[Walkers, Tensor], Tensor]
# (images [n, C, H, W], index [n]) -> images [n, C, H, W]
Constraint = Callable[[Tensor, Tensor], Tensor]
# (values [n], logits [n, K], index [n]) -> bool [n]
Stop = Callable[[Tensor, Tensor, Tensor], Tensor]
Callback = Callable[[dict[str, Any]], None]


def input_gradient(
    values: Tensor, images: Tensor, *, retain_graph: bool = False, create_graph: bool = False
) -> Tensor:
    """The gradient of each value with respect to its own image, ``[n, C, H, W]``.

    Args:
        values: ``[n]``; each depends on the image of the same index only.
        images: ``[n, C, H, W]``, with ``requires_grad``.
        retain_graph: keep the graph for another gradient of the same forward pass.
        create_graph: the gradient itself can be differentiated.

    Raises:
        ConfigError: the values are not connected to the images by differentiable operations.
        NetworkError: the backward pass raises an exception.
    """
    gradient: Tensor | None = None
    if values.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(
                values.sum(),
                images,
                retain_graph=retain_graph or create_graph,
                create_graph=create_graph,
                allow_unused=True,
            )
        # A backward pass of the user's own may raise anything.
        except Exception as error:
            raise raised(error, images, "backward pass") from error
    if gradient is None:
        raise ConfigError(
            "classifier: its logits have no gradient with respect to the image, which this attack or sampler needs; "
            "take torch.no_grad(), detach() and NumPy out of the network's forward, or use trilemma.attacks.square, "
            "which needs no gradient"
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
    """Moves each image ``steps`` times, or until it meets the stopping rule.

    Call it inside :func:`trilemma.classifier.contexts.inner_loop`, so that no weight gradient is computed.

    Args:
        network: its BatchNorm layers must be in eval mode if ``stop`` is given.
        images: initial images, ``[N, C, H, W]``.
        objective: ``(images [n, C, H, W], index [n]) -> (values [n], logits [n, K])``. ``index`` has the positions of
            the images in the original batch.
        step_rule: ``(walkers, gradient) -> new images``, before the constraint; ``gradient`` is that of each value with
            respect to its image.
        constraint: ``(images, index) -> images``.
        steps: number of steps; with 0 the initial images are returned.
        seeds: int64 ``[N]``, one per image, for step rules that draw random numbers.
        stop: ``(values, logits, index) -> bool [n]``, called before each step; images for which it is true are final
            and removed from the batch.
        callback: called after each step with a dictionary of ``step``, ``images``, ``index``, and the ``values`` and
            ``gradient`` from before the step, all detached.

    Returns:
        The final images, ``[N, C, H, W]``, detached, in the original order.

    Raises:
        ConfigError: ``stop`` with BatchNorm in train mode, where removing an image changes the logits of the others; or
            values without a gradient with respect to the images; or a step rule that returns another shape.
    """
    if stop is not None and batch_norm_trains(network):
        raise ConfigError(
            "walk: images cannot leave the batch while BatchNorm is in train mode; use mode 'eval'"
        )
    if images.is_meta:
        # On the meta device only shapes are propagated; there are no values for a stopping rule.
        stop = None
    index = torch.arange(len(images), device=images.device)
    walkers = Walkers(images.detach(), index, seeds=seeds)
    final = None if stop is None else walkers.images.clone()
    for step in range(steps):
        walkers.step = step
        with torch.enable_grad():
            # A new tensor, since a callback may have stored the previous one.
            current = walkers.images.detach().requires_grad_()
            values, logits = objective(current, walkers.index)
            gradient = input_gradient(values, current)
        walkers.images, walkers.values = current.detach(), values.detach()
        with torch.no_grad():
            if stop is not None and final is not None:
                stopped = stop(values.detach(), logits.detach(), walkers.index)
                if bool(stopped.any()):
                    final[walkers.index[stopped]] = walkers.images[stopped]
                    remaining = (~stopped).nonzero().squeeze(1)
                    walkers.select(remaining)
                    gradient, values = gradient[remaining], values[remaining]
                    if not len(remaining):
                        return final
            moved = step_rule(walkers, gradient)
            if moved.shape != walkers.images.shape:
                raise ConfigError(
                    f"walk: the step rule returned {list(moved.shape)} for images {list(walkers.images.shape)}; it "
                    "returns the moved images"
                )
            walkers.images = constraint(moved, walkers.index)
        if callback is not None:
            tensors = {"images": walkers.images, "values": values.detach(), "gradient": gradient}
            callback({"step": step, "index": walkers.index, **tensors})
    if final is None:
        return walkers.images
    final[walkers.index] = walkers.images
    return final
