"""A faster copy of a classifier for attacks: :func:`fast_copy`, the only public name, makes it.

What it does: it traces the network with torch.fx and rewrites the graph. BatchNorm is folded into the convolution
before it, and normalisation and the first convolution become one module (:class:`FirstConvolution`) whose input
gradient is cheap on a CPU. Wide convolutions are computed by tiles (:mod:`trilemma.classifier.winograd`). The copy
holds two forms of the graph (:class:`FastNetwork`): one that is differentiable, and on a CPU, for networks without wide
convolutions, a frozen TorchScript graph for logits without gradients.

When it declines: a network that cannot be traced faithfully (hooks, in-place operations whose result is unused, buffers
written in the forward pass, control flow that depends on values; see :func:`trace`) gets an ordinary copy that differs
in memory format only. If any copy fails, or disagrees with the original on the images given, ``fast_copy`` returns the
original classifier itself; it never raises.

What is guaranteed: the original is not changed. On the images given, the logits of the copy, in batches and alone,
differ from those of the original by at most 1e-4 of the largest logit, and the input gradient of an image by at most
5 % of its norm, that of one of them by at most 1 %. A :class:`FastNetwork` keeps no state between two passes, so
several threads may call it at once. Nothing is guaranteed for other images, which is why the pool takes every final
verdict from the original.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.memory_format import contiguous_is_faster, preferred_memory_format, set_memory_format
from trilemma.classifier.output import logits_in
from trilemma.classifier.winograd import FixedConvolution
from trilemma.networks import stem

# Largest difference of logits that counts as rounding, relative to the largest logit.
_LOGIT_TOLERANCE = 1e-4
# The same for the input gradient, relative to its norm: of the image with the least difference, and of all. Rounding
# switches a ReLU whose input is near 0, which happens in every third image of a WRN-28-2 and changes its gradient by a
# per cent or two.
_GRADIENT_TOLERANCE, _GRADIENT_TOLERANCE_OF_ALL = 1e-2, 5e-2
# Input gradients, one per image and step, from which on a copy saves more than it costs, on a CPU and elsewhere.
WORTH_A_COPY = 1_000
WORTH_A_COPY_ON_ACCELERATOR = 100_000
# With fewer channels in all convolutions, the frozen form gains more than tiles do.
_WIDE = 128
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Operations without side effects: their result may be unused in a graph.
_PURE = (operator.getitem, getattr, "size", "dim")


class FastNetwork(nn.Module):
    """One traced network in two forms, both from images in [0, 1] to logits.

    A graph that :func:`trace` accepts keeps no state between two passes, so several threads may call it at once.

    Args:
        with_gradient: the differentiable form.
        logits_only: the faster form for passes without gradient.
    """

    def __init__(self, with_gradient: nn.Module, logits_only: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.with_gradient, self.logits_only = with_gradient, logits_only

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = self.with_gradient(images)
            return logits
        return self.logits_only(images)


def fast_copy(clf: Classifier, images: Tensor, *, gradients_only: bool = False) -> Classifier:
    """A faster classifier whose logits and input gradients equal those of ``clf`` up to rounding, or ``clf`` itself.

    Args:
        clf: in any mode; not changed. The copy is in eval mode, with ``requires_grad`` off for its weights.
        images: ``[n, C, H, W]`` in [0, 1], at least one; the copy is compared with ``clf`` on them.
        gradients_only: leave out the frozen form, which takes half of the time of copying and serves passes without
            gradient only.

    Returns:
        The copy, which shares the statistics of ``clf``; or ``clf`` itself if no copy can be made or the copy disagrees
        with it. See the head of this module.
    """
    if len(images) == 1:
        # With one image, a network that confuses the batch with a broadcast dimension would go unnoticed.
        images = torch.cat([images, images])
    try:
        # A traced graph that fails prints its location before it raises.
        with redirect_stderr(StringIO()):
            # The statistics may be far larger than the network.
            shared = {id(clf.statistics): clf.statistics}
            other = copy.deepcopy(clf, shared).eval().requires_grad_(False)
            memory_format = preferred_memory_format(other.network, images.device)
            traced = trace(_NormalisedNetwork(other.network, other.mean, other.std, other.output))
            if traced is None:
                set_memory_format(other, memory_format)
            else:
                # A copy, as the network may write on its input.
                inputs = images.to(clf.dtype, copy=True)
                # The graph contains the normalisation and selects the logits.
                other.network, other.mean, other.std = (
                    _fast_network(traced, inputs, memory_format, gradients_only),
                    None,
                    None,
                )
                other.output = None
            return other if _agree(other, clf, torch.cat([images, images[:1]])) else clf
    # Tracing runs the user's forward on proxies: it may raise anything.
    except Exception:
        return clf


def quick_gradients(clf: Classifier, images: Tensor, gradients: int) -> Classifier:
    """A fast copy for input gradients alone, or ``clf`` itself for so few that copying would cost more than it saves.

    Args:
        clf, images: as of :func:`fast_copy`.
        gradients: how many there will be, one per image and step.
    """
    fewest = WORTH_A_COPY if images.device.type == "cpu" else WORTH_A_COPY_ON_ACCELERATOR
    if gradients < fewest or images.is_meta:
        return clf
    batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in clf.network.modules())
    if contiguous_is_faster(clf.network) and not batch_norm:
        # Neither the memory format nor BatchNorm would differ.
        return clf
    return fast_copy(clf, images[:2], gradients_only=True)


def _agree(other: Classifier, clf: Classifier, images: Tensor) -> bool:
    """Whether both give the same logits, for a batch and for one image, and the same input gradient.

    The gradient is compared separately: a traced graph does not show a custom backward pass, a hook or a detached
    tensor.
    """
    with inner_loop(clf, "eval"):
        expected, expected_gradient = _logits_and_gradient(clf, images)
        with torch.no_grad():
            expected_single = clf.logits(images[:1])
    logits, gradient = _logits_and_gradient(other, images)
    with torch.no_grad():
        all_logits = torch.cat([logits, other.logits(images), other.logits(images[:1])])
        all_expected = torch.cat([expected, expected, expected_single])
        norms = expected_gradient.flatten(1).norm(dim=1)
        differences = (gradient - expected_gradient).flatten(1).norm(dim=1)
        return bool(
            (all_logits - all_expected).abs().max() <= _LOGIT_TOLERANCE * all_expected.abs().max()
            and (differences <= _GRADIENT_TOLERANCE_OF_ALL * norms).all()
            and (differences <= _GRADIENT_TOLERANCE * norms).any()
        )


@torch.enable_grad()
def _logits_and_gradient(clf: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[n, K]``, and the gradient of a weighted sum of them with respect to the images."""
    points = images.clone().requires_grad_()
    logits = clf.logits(points)
    weights = torch.linspace(1.0, -1.0, logits.shape[1], device=logits.device)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), points)
    return logits.detach(), gradient


def _fast_network(
    traced: fx.GraphModule, images: Tensor, memory_format: torch.memory_format, gradients_only: bool
) -> FastNetwork:
    """Rewrites the graph and makes both forms of it; without a frozen form, the differentiable one serves for both."""
    _fold_batch_norm(traced)
    wide = _replace_wide_convolutions(traced)
    frozen = None if gradients_only or wide else _freeze(traced, images)
    _merge_first_convolution(traced, memory_format)
    set_memory_format(traced, memory_format)
    return FastNetwork(traced, frozen or traced)


def _freeze(traced: fx.GraphModule, images: Tensor) -> Callable[[Tensor], Tensor] | None:
    """A frozen TorchScript graph without gradients, or ``None`` off the CPU and where TorchScript fails.

    Its convolutions use oneDNN's weight layout and are fused with the ReLU and the sum that follow them.
    """
    if images.device.type != "cpu":
        return None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = torch.jit.trace(traced, images, check_trace=False)
            frozen = torch.jit.optimize_for_inference(script.eval())
            # Some graphs can be made and not run: oneDNN's adaptive pooling needs multiples. The second pass runs an
            # optimised form.
            for _ in range(2):
                frozen(images)
    # For example an operation that TorchScript does not know.
    except Exception:
        return None
    # The method instead of the module: a module would have a train mode that could be switched on.
    forward: Callable[[Tensor], Tensor] = frozen.forward
    return forward


# --- The graph ----------------------------------------------------------------------------------------------


class _NormalisedNetwork(nn.Module):
    """Normalisation, network and selection of the logits as one module, so that they are traced together."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, network: nn.Module, mean: Tensor | None, std: Tensor | None, output: str | int | None = None
    ) -> None:
        super().__init__()
        self.network, self.output = network, output
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        return logits_in(self.network(images), self.output)


class _Tracer(fx.Tracer):
    """Treats PyTorch's modules as leaves unless they contain other modules, as ``DataParallel`` does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, stem.StemConvolution):
            return True
        all_torch = all(type(module).__module__.startswith("torch.") for module in m.modules())
        return all_torch and super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.GraphModule | None:
    """``network`` as a graph that keeps no state between two passes; ``None`` if that cannot be guaranteed.

    FX tracing cannot see hooks, or in-place operations whose result is unused; and a buffer written in the forward pass
    would be shared by all threads.
    """
    if any(getattr(module, hooks) for module in network.modules() for hooks in _HOOKS):
        return None
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
    # A user's forward on proxies may raise anything, for example where control flow depends on values.
    except Exception:
        return None
    for node in traced.graph.nodes:
        unused = not node.users and node.op != "output" and node.target not in _PURE
        in_place = node.op == "call_method" and str(node.target).endswith("_")
        if unused or (in_place and any(source.op == "get_attr" for source in node.all_input_nodes[:1])):
            return None
    return traced


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Folds each BatchNorm into the convolution before it, if nothing else reads the convolution's output."""
    modules = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(norm := modules[node.target], nn.BatchNorm2d):
            continue
        (source,) = node.all_input_nodes
        convolution = modules.get(source.target) if source.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or len(source.users) > 1 or calls.count(source.target) > 1:
            continue
        _replace_module(traced, source.target, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _replace_wide_convolutions(traced: fx.GraphModule) -> bool:
    """Replaces every convolution that is faster by tiles if one is wide; returns whether there was one."""
    fitting = {name: module for name, module in traced.named_modules() if FixedConvolution.fits(module)}
    if not any(min(conv.in_channels, conv.out_channels) >= _WIDE for conv in fitting.values()):
        return False
    for name, conv in fitting.items():
        _replace_module(traced, name, FixedConvolution(conv))
    return True


def _merge_first_convolution(traced: fx.GraphModule, memory_format: torch.memory_format) -> None:
    """Replaces the normalisation and the convolution after it by one :class:`FirstConvolution`.

    Leaves the graph unchanged if anything else reads the images or their normalised form, or the convolution does not
    fit.
    """
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
    _replace_module(traced, reader.target, FirstConvolution(modules[reader.target], mean, std, memory_format))
    reader.args = (images,)
    if mean is not None:
        for node in (source, source.args[1], minus, minus.args[1]):
            if not node.users:
                traced.graph.erase_node(node)
    traced.recompile()


def _replace_module(traced: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(traced.get_submodule(parent), name, module)


# --- The first convolution ------------------------------------------------------------------------------------


class FirstConvolution(nn.Module):
    """``conv((x - mean) / std)`` as one module with a cheap input gradient (:mod:`trilemma.networks.stem`).

    The mean is subtracted from the images and not folded into the bias, because zero padding comes after it; ``std`` is
    folded into the weights.

    Args:
        conv: a convolution for which :meth:`fits` is true.
        mean, std: ``[1, C, 1, 1]`` or ``[1, 1, 1, 1]``; ``None`` for no normalisation.
        memory_format: memory format of the weight.
    """

    mean: Tensor | None
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, conv: nn.Conv2d, mean: Tensor | None, std: Tensor | None, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        weight = conv.weight.detach() if std is None else conv.weight.detach() / std.to(conv.weight)
        self.register_buffer("mean", mean)
        self.register_buffer("weight", weight.clone(memory_format=memory_format))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        assert isinstance(conv.padding, tuple)
        self.stride, self.padding = conv.stride, conv.padding

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether this class can replace ``conv`` and is faster than it."""
        return type(conv) in (nn.Conv2d, stem.StemConvolution) and stem.fits(conv)

    def forward(self, images: Tensor) -> Tensor:
        images = images if self.mean is None else images - self.mean
        return stem.convolution(images, self.weight, self.bias, self.stride, self.padding)
