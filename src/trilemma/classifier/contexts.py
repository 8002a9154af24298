"""Context managers that restore the state of a network: modes, gradient flags, BatchNorm buffers, random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Mode = Literal["eval", "train"]
BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def inner_loop(network: nn.Module, mode: Mode | None = "eval") -> Iterator[None]:
    """The context in which attacks and samplers run: no weight gradients, and the network is restored on exit.

    The train/eval mode of every submodule, ``requires_grad`` of every parameter and the value of every buffer are
    restored, also when the body raises.

    Args:
        network: the network through which input gradients are computed.
        mode: mode of all submodules inside the context; ``None`` leaves the modes unchanged.
    """
    modules = _modes(network)
    # Converting a TorchScript network to another type makes its parameters results of a computation.
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters() if parameter.is_leaf]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        if mode is not None:
            set_mode(network, mode == "train")
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modules:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for buffer, saved in buffers:
            # The values are the same as before, so .data avoids invalidating a graph that was built earlier.
            buffer.data.copy_(saved)


def set_mode(network: nn.Module, training: bool) -> None:
    """``network.train(training)``; without effect on a graph of ``torch.export``, whose mode is fixed."""
    # Those graphs raise it.
    with suppress(NotImplementedError):
        network.train(training)


def _modes(network: nn.Module) -> list[tuple[nn.Module, bool]]:
    """The modules that have a train/eval mode, with it; a frozen TorchScript module has none."""
    return [(module, module.training) for module in network.modules() if hasattr(module, "training")]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the default random generators of torch, NumPy and Python, which a random network draws from.

    Their states are restored on exit.

    Args:
        seed: any integer.
        device: the device of the network; its generator is seeded too.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of the network's BatchNorm layers."""
    return [
        value
        for layer in _batch_norms(network)
        for value in (layer.running_mean, layer.running_var)
        if value is not None
    ]


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside this context, BatchNorm layers in train mode normalise by the batch but do not update running statistics.

    Used for the loss's forward passes of adversarial and generated images, since only clean images may update the
    running statistics. ``track_running_stats=False`` stops the update in train mode; a layer in eval mode still
    normalises by its running statistics.
    """
    layers = [(module, module.track_running_stats) for module in _batch_norms(network)]
    for layer, _ in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracks in layers:
            layer.track_running_stats = tracks


@contextmanager
def batch_norm_frozen(network: nn.Module) -> Iterator[None]:
    """Inside this context, BatchNorm uses its running statistics without updating them; its weights still train."""
    layers = [(module, module.training) for module in _batch_norms(network)]
    for layer, _ in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer, training in layers:
            layer.training = training


@contextmanager
def autocast_off(device: torch.device) -> Iterator[None]:
    """Disables autocast, for differences and second derivatives that are too small for half precision."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def batch_norm_trains(network: nn.Module) -> bool:
    """Whether any BatchNorm layer normalises by the batch, so that an image's logits depend on the other images."""
    return any(layer.training or layer.running_mean is None for layer in _batch_norms(network))


class _AlwaysEval:
    """Mixin of modules whose mode is always eval."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


def freeze_batch_norms(network: nn.Module) -> None:
    """Keeps BatchNorm layers with frozen parameters in eval mode, whatever mode the network is set to.

    Otherwise their running statistics would move with the batches of training, and with them what the frozen layers
    compute.
    """
    for layer in _batch_norms(network):
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            kind = type(layer)
            # The class is changed, not the method of the object, so that a copy of the network keeps it.
            layer.__class__ = type(f"Frozen{kind.__name__}", (_AlwaysEval, kind), {})
            layer.eval()


def _batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def set_batch_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Sets the momentum of every BatchNorm layer, in PyTorch's sense: the weight of the new batch."""
    for layer in _batch_norms(network):
        layer.momentum = momentum


@torch.no_grad()
def reestimate_batch_norm(
    network: nn.Module, forward: Callable[[Tensor], Tensor], batches: Iterable[Tensor]
) -> None:
    """Sets the BatchNorm running statistics to their average over ``batches`` of clean images.

    Needed where the forward passes of training use other images than evaluation, and where the momentum of a published
    implementation is so large that the running statistics are those of about one batch.

    Args:
        network: contains the layers; its train/eval modes are restored.
        forward: does a forward pass of ``network``.
        batches: images ``[N, C, H, W]`` each.
    """
    layers = [layer for layer in _batch_norms(network) if not isinstance(layer, _AlwaysEval)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    modes = _modes(network)
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        # None: a cumulative average over the batches.
        layer.momentum = None
        layer.train()
    try:
        for images in batches:
            forward(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
