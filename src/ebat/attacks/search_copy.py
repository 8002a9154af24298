"""A copy of a classifier that answers attacks faster: its logits are the same up to rounding."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ebat.classifier import Classifier
from ebat.contexts import inner_loop

# Largest difference of a logit, as a share of the largest logit, that counts as rounding.
_AGREE = 1e-4

# What makes a tensor of its own and does not look at it again, not even in its backward pass.
_MAKERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
_ADDS = (operator.add, torch.add, operator.iadd)
_RELUS = (torch.relu, F.relu)


def search_copy(clf: Classifier, images: Tensor) -> Classifier:
    """``clf`` with BatchNorm folded into the convolutions before it, fewer tensors, and channels-last weights.

    A search asks the copy; what counts is always asked of the original. Where the copy says something else about
    ``images`` than the original, or none can be made, the original itself is returned. The normalisation is not folded:
    zero padding around normalised images is the mean colour around plain ones, which no convolution can pad with.

    Args:
        clf: left as it was.
        images: a few images ``[n, C, H, W]`` to compare the two on.
    """
    try:
        other = copy.deepcopy(clf).eval().requires_grad_(False)
        other.network = _traced(other.network, images.to(clf.dtype))
        if not _by_planes(other, images.device):
            for weight in (*other.parameters(), *other.buffers()):
                if weight.dim() == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        with torch.enable_grad():
            here = images.clone().requires_grad_()
            ours = other.logits(here)
            torch.autograd.grad(ours.sum(), here)  # what was overwritten must not be missed on the way back
    except Exception:  # tracing runs the user's own forward on stand-ins: it may raise anything
        return clf
    with torch.no_grad(), inner_loop(clf, "eval"):
        theirs = clf.logits(images)
    agrees = (ours - theirs).abs().max() <= _AGREE * theirs.abs().max()
    return other if bool(agrees) else clf


def _by_planes(network: nn.Module, device: torch.device) -> bool:
    """Whether channels-last would cost more than it gives: GroupNorm on a CPU is a seventh of a pass slower by it."""
    return device.type == "cpu" and any(isinstance(module, nn.GroupNorm) for module in network.modules())


def _traced(network: nn.Module, images: Tensor) -> nn.Module:
    """``network`` in eval mode, rewritten; the network itself where it cannot be traced."""
    try:
        traced = fx.symbolic_trace(network)
    except (
        Exception
    ):  # a user's forward on stand-ins may raise anything, as control flow that depends on values
        return network
    _fold(traced)
    _overwrite(traced, images)
    return traced


def _fold(traced: fx.GraphModule) -> None:
    """Folds each BatchNorm that alone reads a convolution into it."""
    modules = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(norm := modules[node.target], nn.BatchNorm2d):
            continue
        (source,) = node.all_input_nodes
        convolution = modules.get(source.target) if source.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or len(source.users) > 1 or calls.count(source.target) > 1:
            continue
        parent, _, name = source.target.rpartition(".")
        setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _overwrite(traced: fx.GraphModule, images: Tensor) -> None:
    """Lets ReLU and sums of equal shape overwrite what nobody else reads.

    Fresh memory is dear where a network is small: on a processor the pages of large tensors come and go with each pass.
    """
    modules = dict(traced.named_modules())
    with torch.no_grad():
        ShapeProp(traced).propagate(images)

    def spare(node: fx.Node) -> bool:
        made = node.target in _ADDS or isinstance(modules.get(str(node.target)), _MAKERS)
        return made and node.op in ("call_module", "call_function") and len(node.users) == 1

    for node in list(traced.graph.nodes):
        sources = node.all_input_nodes
        relu = node.target in _RELUS or (node.op, node.target) == ("call_method", "relu")
        relu = relu or (node.op == "call_module" and isinstance(modules[node.target], nn.ReLU))
        if relu and spare(sources[0]):
            _replace(traced.graph, node, torch.relu_, (sources[0],))
        elif node.target in _ADDS and len(sources) == 2 == len(node.args) and not node.kwargs:
            shapes = [source.meta.get("tensor_meta") for source in sources]
            if spare(sources[0]) and shapes[0] and shapes[1] and shapes[0].shape == shapes[1].shape:
                _replace(traced.graph, node, operator.iadd, (sources[0], sources[1]))
    traced.recompile()


def _replace(
    graph: fx.Graph, node: fx.Node, target: Callable[..., Tensor], arguments: tuple[fx.Node, ...]
) -> None:
    with graph.inserting_before(node):
        other = graph.call_function(target, arguments)
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    graph.erase_node(node)
