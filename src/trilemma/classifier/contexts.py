"""Contexts that leave a network exactly as they found it: modes, gradient flags, BatchNorm buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["eval", "train"]
BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def inner_loop(network: nn.Module, mode: Mode | None = "eval") -> Iterator[None]:
    """Inside, attacks and samplers run: no weight gradients, and nothing they do to the network stays.

    The train/eval mode of every submodule, every gradient flag and every buffer is put back, also
    when the body raises.

    Args:
        network: the network whose inputs are walked.
        mode: mode of all submodules inside; ``None`` keeps each one's own.
    """
    modules = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        if mode is not None:
            network.train(mode == "train")
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modules:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for buffer, saved in buffers:
            # .data: the values are those of before, so a graph built before the loop stays valid
            buffer.data.copy_(saved)


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm in train mode normalises by the batch but its running statistics stay as they are.

    For the loss forwards of adversarial and generated images: only clean images may move the running
    statistics. A layer in train mode that tracks none updates none; one in eval mode still reads its own.
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
    """Inside, BatchNorm normalises by its running statistics and leaves them alone; its weights still train."""
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
    """Inside, autocast is off: for differences and second derivatives that half precision would drown."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def batch_norm_trains(network: nn.Module) -> bool:
    """Whether some BatchNorm layer would normalise by the batch, so that one image changes the others."""
    return any(layer.training or layer.running_mean is None for layer in _batch_norms(network))


def _batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def set_batch_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Sets the weight of a new batch in every BatchNorm layer's running statistics (PyTorch's sense)."""
    for layer in _batch_norms(network):
        layer.momentum = momentum


@torch.no_grad()
def reestimate_batch_norm(
    network: nn.Module, forward: Callable[[Tensor], Tensor], batches: Iterable[Tensor]
) -> None:
    """Sets BatchNorm running statistics to the average over ``batches`` of clean images.

    Needed where training forwards saw other images than evaluation does, and where the momentum of a
    release makes the running statistics those of about one batch.

    Args:
        network: holds the layers; its modes are put back.
        forward: runs it on images.
        batches: images ``[N, C, H, W]`` each.
    """
    layers = _batch_norms(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average over the batches
        layer.train()
    try:
        for images in batches:
            forward(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
