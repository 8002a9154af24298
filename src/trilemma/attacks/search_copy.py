"""A copy of a classifier that answers attacks faster: its logits are the same up to rounding."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO

import torch
from torch import Tensor, fx, nn

from trilemma.attacks.search_graph import (
    Normalised,
    flatten_by_pixels,
    fold_batch_norm,
    join_first_convolution,
    note_shapes,
    overwrite,
    trace,
)
from trilemma.classifier import Classifier
from trilemma.contexts import inner_loop

# Largest difference of a logit, as a share of the largest logit, that counts as rounding.
_AGREE = 1e-4
# Of the gradient's length; rounding may take a ReLU at 0 to its other side.
_GRADIENTS_AGREE = 1e-2


class SearchNetwork(nn.Module):
    """One traced network in two forms: ``walked`` where a gradient will be asked for, ``asked`` where only logits are.

    Both take images in [0, 1]. What :func:`trilemma.attacks.search_graph.trace` lets through keeps nothing between two
    passes, so several threads may use it at once.
    """

    def __init__(self, walked: nn.Module, asked: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.walked, self.asked = walked, asked

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            walked: Tensor = self.walked(images)
            return walked
        return self.asked(images)


def search_copy(clf: Classifier, images: Tensor) -> Classifier:
    """``clf`` with its network rewritten (:mod:`trilemma.attacks.search_graph`), frozen where only logits are asked
    for.

    A search asks the copy; what counts is always asked of the original. Where the copy says something else about
    ``images`` than the original, or has another gradient there, or none can be made, the original itself is returned;
    where its network cannot be traced, a copy that only lies differently in memory.

    Args:
        clf: left as it was.
        images: a few images ``[n, C, H, W]`` to compare the two on, at least one.
    """
    if len(images) == 1:  # of one image, a batch and a shape that is broadcast look the same
        images = torch.cat([images, images])
    try:
        # what fails in a traced graph prints where it did before it raises
        with redirect_stderr(StringIO()):
            other = copy.deepcopy(clf).eval().requires_grad_(False)
            traced = trace(Normalised(other.network, other.mean, other.std))
            if traced is None:
                _lay(other, _memory_format(other.network, images.device))
            else:
                other.network, other.mean, other.std = _two_forms(traced, images.to(clf.dtype)), None, None
            return other if _agree(other, clf, torch.cat([images, images[:1]])) else clf
    except Exception:  # tracing runs the user's own forward on stand-ins: it may raise anything
        return clf


def _agree(other: Classifier, clf: Classifier, images: Tensor) -> bool:
    """Whether ``other`` says the same, of one image as of many, and has the same gradient by the images.

    The gradient is a question of its own: a forward pass may be followed by a backward pass that was written by hand,
    changed by a hook or cut off, and none of it need be seen in a traced graph.
    """
    with inner_loop(clf, "eval"):
        many, gradient = _logits_and_gradient(clf, images)
        with torch.no_grad():
            one = clf.logits(images[:1])
    walked, own_gradient = _logits_and_gradient(other, images)
    with torch.no_grad():
        ours = torch.cat([walked, other.logits(images), other.logits(images[:1])])
        theirs = torch.cat([many, many, one])
        return bool(
            (ours - theirs).abs().max() <= _AGREE * theirs.abs().max()
            and (own_gradient - gradient).norm() <= _GRADIENTS_AGREE * gradient.norm()
        )


@torch.enable_grad()
def _logits_and_gradient(clf: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    here = images.clone().requires_grad_()
    logits = clf.logits(here)
    weights = torch.linspace(1.0, -1.0, logits.shape[1], device=logits.device)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), here)
    return logits.detach(), gradient


def _two_forms(traced: fx.GraphModule, images: Tensor) -> SearchNetwork:
    fold_batch_norm(traced)
    frozen = _frozen(traced, images)
    memory_format = _memory_format(traced, images.device)
    note_shapes(traced, images)
    join_first_convolution(traced, memory_format)
    if memory_format == torch.channels_last:
        flatten_by_pixels(traced)
    overwrite(traced)
    _lay(traced, memory_format)
    return SearchNetwork(traced, frozen or traced)


def _frozen(traced: fx.GraphModule, images: Tensor) -> Callable[[Tensor], Tensor] | None:
    """For a processor: convolutions in the library's own memory layout, each with the ReLU and the sum behind it.

    Such a graph knows no gradient.
    """
    if images.device.type != "cpu":
        return None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recorded = torch.jit.trace(traced, images, check_trace=False)
            frozen = torch.jit.optimize_for_inference(recorded.eval())
    except Exception:  # an operation that TorchScript does not know
        return None
    forward: Callable[[Tensor], Tensor] = frozen.forward  # not the module: it has no mode that one could set
    return forward


def _memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels-last, except for GroupNorm on a processor: a pass would be a seventh slower by it."""
    planes = device.type == "cpu" and any(isinstance(module, nn.GroupNorm) for module in network.modules())
    return torch.contiguous_format if planes else torch.channels_last


def _lay(network: nn.Module, memory_format: torch.memory_format) -> None:
    for weight in (*network.parameters(), *network.buffers()):
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)
