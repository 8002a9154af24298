"""A copy of a classifier that answers attacks faster: its logits are the same up to rounding.

:func:`fast_copy` is the only public name. It traces the network with torch.fx and rewrites the graph: BatchNorm is
folded
into the convolution before it, and normalisation plus the first convolution become one module whose input gradient is
cheap on a CPU (:class:`FirstConvolution`). The copy keeps two forms of that graph: one for gradients, and on a CPU a
frozen TorchScript graph for logits alone. It is returned only if logits and input gradient agree with the original's on
a few images; otherwise the original itself is. Verdicts are always those of the original.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.memory_format import preferred_memory_format, set_memory_format

# Largest difference of a logit, as a share of the largest logit, that counts as rounding.
_LOGITS_AGREE = 1e-4
# Largest difference of the gradient, as a share of its length; rounding may take a ReLU at 0 to its other side.
_GRADIENTS_AGREE = 1e-2
# An image has few channels. With more, the convolution library's own gradient is as fast.
MOST_CHANNELS = 4
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Operations whose result may be unused without any effect.
_PURE = (operator.getitem, getattr, "size", "dim")


class FastNetwork(nn.Module):
    """One traced network in two forms: ``with_gradient`` and ``logits_only``; both take images in [0, 1].

    A graph that :func:`trace` accepts keeps nothing between two passes, so several threads may call it at once.
    """

    def __init__(self, with_gradient: nn.Module, logits_only: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.with_gradient, self.logits_only = with_gradient, logits_only

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = self.with_gradient(images)
            return logits
        return self.logits_only(images)


def fast_copy(clf: Classifier, images: Tensor) -> Classifier:
    """A faster classifier with the logits and input gradients of ``clf`` up to rounding, or ``clf`` itself.

    ``clf`` itself is returned where no copy can be made or the copy disagrees with it on ``images``. A network that
    cannot be traced gets a copy that differs only in memory format.

    Args:
        clf: in any mode; left as it was. The copy is in eval mode, its weights without gradient.
        images: ``[n, C, H, W]`` in [0, 1], at least one, to compare the two on.
    """
    if len(images) == 1:
        # with one image, a batch and a broadcast shape look the same
        images = torch.cat([images, images])
    try:
        # a failing traced graph prints its location before it raises
        with redirect_stderr(StringIO()):
            other = copy.deepcopy(clf).eval().requires_grad_(False)
            traced = trace(_Normalised(other.network, other.mean, other.std))
            if traced is None:
                set_memory_format(other, preferred_memory_format(other.network, images.device))
            else:
                other.network, other.mean, other.std = _two_forms(traced, images.to(clf.dtype)), None, None
            return other if _agree(other, clf, torch.cat([images, images[:1]])) else clf
    except Exception:  # tracing runs the user's forward on proxies: it may raise anything
        return clf


def _agree(other: Classifier, clf: Classifier, images: Tensor) -> bool:
    """Whether both give the same logits, for one image as for many, and the same input gradient.

    The gradient is checked separately: a backward pass may be written by hand, changed by a hook or cut off, and a
    traced graph need not show it.
    """
    with inner_loop(clf, "eval"):
        many, gradient = _logits_and_gradient(clf, images)
        with torch.no_grad():
            one = clf.logits(images[:1])
    with_gradient, own_gradient = _logits_and_gradient(other, images)
    with torch.no_grad():
        ours = torch.cat([with_gradient, other.logits(images), other.logits(images[:1])])
        theirs = torch.cat([many, many, one])
        return bool(
            (ours - theirs).abs().max() <= _LOGITS_AGREE * theirs.abs().max()
            and (own_gradient - gradient).norm() <= _GRADIENTS_AGREE * gradient.norm()
        )


@torch.enable_grad()
def _logits_and_gradient(clf: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    points = images.clone().requires_grad_()
    logits = clf.logits(points)
    weights = torch.linspace(1.0, -1.0, logits.shape[1], device=logits.device)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), points)
    return logits.detach(), gradient


def _two_forms(traced: fx.GraphModule, images: Tensor) -> FastNetwork:
    _fold_batch_norm(traced)
    frozen = _frozen(traced, images)
    memory_format = preferred_memory_format(traced, images.device)
    _join_first_convolution(traced, memory_format)
    set_memory_format(traced, memory_format)
    return FastNetwork(traced, frozen or traced)


def _frozen(traced: fx.GraphModule, images: Tensor) -> Callable[[Tensor], Tensor] | None:
    """On a CPU, a graph without gradients: convolutions in oneDNN's layout, fused with the ReLU and sum behind them."""
    if images.device.type != "cpu":
        return None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recorded = torch.jit.trace(traced, images, check_trace=False)
            frozen = torch.jit.optimize_for_inference(recorded.eval())
    except Exception:  # an operation that TorchScript does not know
        return None
    # the method, not the module: a module would have a mode that could be set
    forward: Callable[[Tensor], Tensor] = frozen.forward
    return forward


# --- The graph ----------------------------------------------------------------------------------------------


class _Normalised(nn.Module):
    """A network with its normalisation in front, traced as one."""

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
        logits: Tensor = self.network(images)
        return logits


class _Tracer(fx.Tracer):
    """Traces into PyTorch's own modules where they contain somebody else's, such as ``DataParallel``."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        all_torch = all(type(module).__module__.startswith("torch.") for module in m.modules())
        return all_torch and super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.GraphModule | None:
    """``network`` as a graph that keeps nothing between two passes; ``None`` where that cannot be guaranteed.

    FX tracing cannot see hooks, or in-place operations whose result is unused; and a buffer written in the forward pass
    would be shared by all threads.
    """
    if any(getattr(module, hooks) for module in network.modules() for hooks in _HOOKS):
        return None
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
    except Exception:  # a user's forward on proxies may raise anything: control flow may depend on values
        return None
    for node in traced.graph.nodes:
        unused = not node.users and node.op != "output" and node.target not in _PURE
        in_place = node.op == "call_method" and str(node.target).endswith("_")
        if unused or (in_place and any(source.op == "get_attr" for source in node.all_input_nodes[:1])):
            return None
    return traced


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Folds each BatchNorm into the convolution before it, where nothing else reads that convolution."""
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


def _join_first_convolution(traced: fx.GraphModule, memory_format: torch.memory_format) -> None:
    """Replaces normalisation and the convolution that alone reads it by one :class:`FirstConvolution`."""
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


def _put(traced: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(traced.get_submodule(parent), name, module)


# --- The first convolution ------------------------------------------------------------------------------------


class FirstConvolution(nn.Module):
    """``conv((x - mean) / std)`` as one module, whose input gradient is a matrix product and a sum over windows.

    oneDNN's gradient of a convolution with three input channels fills three of sixteen vector lanes: in a small
    network it
    is a third of the backward pass, and takes twice as long as this one. The mean stays outside, where zero padding
    keeps its meaning; ``std`` goes into the weights.

    Args:
        conv: a convolution for which :meth:`fits` is true.
        mean, std: ``[1, C, 1, 1]`` or ``[1, 1, 1, 1]``; ``None`` for images that are not normalised.
        memory_format: of the weight.
    """

    mean: Tensor | None

    def __init__(
        self, conv: nn.Conv2d, mean: Tensor | None, std: Tensor | None, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        weight = conv.weight.detach() if std is None else conv.weight.detach() / std.to(conv.weight)
        self.register_buffer("mean", mean)
        self.register_buffer("weight", weight.clone(memory_format=memory_format))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self.stride, self.padding = conv.stride, conv.padding

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether this class can replace ``conv``, and is faster."""
        return (
            type(conv) is nn.Conv2d
            and conv.weight.device.type == "cpu"
            and conv.in_channels <= MOST_CHANNELS
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.padding_mode == "zeros"
            and isinstance(conv.padding, tuple)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = _Convolution.apply(
            images if self.mean is None else images - self.mean,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
        )  # type: ignore[no-untyped-call]
        return maps


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = images.shape, stride, padding
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (gradient,) = ctx.saved_tensors, upstream
        (count, channels, height, width), (down, right) = ctx.shape, ctx.stride
        (top, left), (rows, columns) = ctx.padding, gradient.shape[2:]
        # [C kh kw, O] @ [n, O, L]: the gradient of each pixel of each window
        windows = (weight.flatten(1).t() @ gradient.flatten(2)).view(
            count, channels, *weight.shape[2:], rows, columns
        )
        frame = gradient.new_zeros(count, channels, height + 2 * top, width + 2 * left)
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                bottom, end = i + down * (rows - 1) + 1, j + right * (columns - 1) + 1
                frame[:, :, i:bottom:down, j:end:right] += windows[:, :, i, j]
        images = frame[:, :, top : top + height, left : left + width].contiguous()
        return images, None, None, None, None
