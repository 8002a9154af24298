"""Rewritings of a traced network in eval mode that change nothing but its speed, each on its own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trilemma.attacks.first_convolution import FirstConvolution

# What makes a tensor of its own and does not look at it again, not even in its backward pass.
_MAKERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, FirstConvolution)
_ADDS = (operator.add, torch.add, operator.iadd)
_RELUS = (torch.relu, F.relu)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What may be asked and not used without any effect.
_LOOKS = (operator.getitem, getattr, "size", "dim")


class Normalised(nn.Module):
    """A network with its normalisation in front, to be traced as one."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, network: nn.Module, mean: Tensor | None, std: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        found: Tensor = self.network(images)
        return found


class _Tracer(fx.Tracer):
    """Looks into PyTorch's own modules where they hold somebody else's, such as ``DataParallel``."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = all(type(module).__module__.startswith("torch.") for module in m.modules())
        return ours and super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.GraphModule | None:
    """``network`` as a graph that keeps nothing between two passes; ``None`` where that cannot be said.

    A graph shows neither hooks nor what a statement does in place, unless its result is read; and a buffer that is
    written in the forward pass is one for all threads.
    """
    if any(getattr(module, hooks) for module in network.modules() for hooks in _HOOKS):
        return None
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
    except Exception:  # a user's forward on stand-ins may raise anything: control flow may depend on values
        return None
    for node in traced.graph.nodes:
        statement = not node.users and node.op != "output" and node.target not in _LOOKS
        writes = node.op == "call_method" and str(node.target).endswith("_")
        if statement or (writes and any(source.op == "get_attr" for source in node.all_input_nodes[:1])):
            return None
    return traced


def note_shapes(traced: fx.GraphModule, images: Tensor) -> None:
    """Writes the shape of every intermediate result to its node, where :func:`overwrite` and others read it."""
    with torch.no_grad():
        ShapeProp(traced).propagate(images)


def fold_batch_norm(traced: fx.GraphModule) -> None:
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
        _put(traced, source.target, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def join_first_convolution(traced: fx.GraphModule, memory_format: torch.memory_format) -> None:
    """Makes one of a traced :class:`Normalised`'s normalisation and the convolution that alone reads it."""
    modules = dict(traced.named_modules())
    images = next(node for node in traced.graph.nodes if node.op == "placeholder")
    source, mean, std = images, getattr(traced, "mean", None), getattr(traced, "std", None)
    if mean is not None:
        minus = next(iter(images.users))
        source = next(iter(minus.users))
        if len(images.users) > 1 or (minus.target, source.target) != (operator.sub, operator.truediv):
            return
    reader = next(iter(source.users))
    if (
        len(source.users) > 1
        or reader.op != "call_module"
        or not FirstConvolution.fits(modules[reader.target])
    ):
        return
    if sum(node.target == reader.target for node in traced.graph.nodes) > 1:
        return
    _put(traced, reader.target, FirstConvolution(modules[reader.target], mean, std, memory_format))
    reader.args = (images,)
    if mean is not None:
        for node in (source, source.args[1], minus, minus.args[1]):
            if not node.users:
                traced.graph.erase_node(node)
    traced.recompile()


def flatten_by_pixels(traced: fx.GraphModule) -> None:
    """Has each linear layer behind a flattening read channels-last images as they lie, its columns reordered."""
    modules = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        reader = next(iter(node.users), None)
        if not _flattens(node, modules) or reader is None or len(node.users) > 1:
            continue
        linear = modules.get(str(reader.target)) if reader.op == "call_module" else None
        if type(linear) is not nn.Linear or calls.count(reader.target) > 1:
            continue
        source = node.args[0]
        channels, height, width = source.meta["tensor_meta"].shape[1:]
        columns = linear.weight.unflatten(1, (channels, height, width)).permute(0, 2, 3, 1).flatten(1)
        linear.weight = nn.Parameter(columns.contiguous(), requires_grad=False)
        with traced.graph.inserting_before(node):
            pixels = traced.graph.call_method("permute", (source, 0, 2, 3, 1))
            _replace(traced.graph, node, torch.flatten, (pixels, 1))
    traced.recompile()


def _flattens(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether ``node`` makes rows of images, whatever it is called."""
    named = node.op == "call_method" and node.target in ("flatten", "view", "reshape")
    named = named or node.target in (torch.flatten, torch.reshape)
    named = named or (node.op == "call_module" and isinstance(modules[str(node.target)], nn.Flatten))
    source = node.args[0] if node.args else None
    if not named or not isinstance(source, fx.Node):
        return False
    before, after = (one.meta.get("tensor_meta") for one in (source, node))
    return (
        before is not None
        and after is not None
        and len(before.shape) == 4
        and after.shape == (before.shape[0], prod(before.shape[1:]))
    )


def overwrite(traced: fx.GraphModule) -> None:
    """Lets ReLU and sums of equal shape overwrite what nobody else reads.

    Fresh memory is dear where a network is small: on a processor the pages of large tensors come and go with each pass.
    """
    modules = dict(traced.named_modules())

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


def _put(traced: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(traced.get_submodule(parent), name, module)


def _replace(
    graph: fx.Graph, node: fx.Node, target: Callable[..., Tensor], arguments: tuple[Any, ...]
) -> None:
    with graph.inserting_before(node):
        other = graph.call_function(target, arguments)
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    graph.erase_node(node)
