"""A copy of a classifier that answers attacks faster: its logits are the same up to rounding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ebat.classifier import Classifier

# Largest difference of a logit, as a share of the largest logit, that counts as rounding.
_AGREE = 1e-4


@torch.no_grad()
def search_copy(clf: Classifier, images: Tensor) -> Classifier:
    """``clf`` with BatchNorm folded into the convolutions before it and its weights laid out channels-last.

    A search asks the copy; what counts is always asked of the original. Where the copy says something else about
    ``images`` than the original, or none can be made, the original itself is returned. The normalisation is not folded:
    zero padding around normalised images is the mean colour around plain ones, which no convolution can pad with.

    Args:
        clf: left as it was.
        images: a few images ``[n, C, H, W]`` to compare the two on.
    """
    try:
        other = copy.deepcopy(clf).eval()
        if any(isinstance(layer, nn.BatchNorm2d) for layer in other.modules()):
            other.network = _folded(other.network)
        other.requires_grad_(False)
        for weight in (*other.parameters(), *other.buffers()):
            if weight.dim() == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        ours = other.logits(images)
    except Exception:  # tracing runs the user's own forward on stand-ins: it may raise anything
        return clf
    modes = [(module, module.training) for module in clf.modules()]
    theirs = clf.eval().logits(images)
    for module, training in modes:
        module.training = training
    agrees = (ours - theirs).abs().max() <= _AGREE * theirs.abs().max()
    return other if bool(agrees) else clf


def _folded(network: nn.Module) -> nn.Module:
    """``network`` in eval mode with each BatchNorm that alone reads a convolution folded into it.

    The network itself where it cannot be traced, as with control flow that depends on values.
    """
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # a user's forward on stand-ins may raise anything
        return network
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
    return traced
