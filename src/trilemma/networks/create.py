"""A network from its options and the shape of its task."""

from __future__ import annotations

from typing import Any

from torch import nn

from trilemma.config.registry import NETWORKS
from trilemma.errors import ConfigError


def create_network(options: Any, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network that ``options`` name: ``[N, C, H, W]`` to logits ``[N, K]``, on the default device.

    A user's own network needs no more than a registry row whose target takes ``num_classes``,
    ``in_channels`` and the fields of its options class as keywords. Weights are drawn from torch's default
    generator: seed it for a repeatable network.

    Args:
        options: one of :mod:`trilemma.networks.options`, or of the user's own.
        num_classes: K, at least 2.
        image_shape: ``(C, H, W)``, pixels.

    Raises:
        ConfigError: fewer than two classes, an image without pixels, or an impossible option.
        UnknownNameError: no such network.
        MissingExtraError: the network needs a package that is not installed.
    """
    if num_classes < 2:
        raise ConfigError(f"network: a classifier tells at least 2 classes apart, got {num_classes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(f"network: images have a shape (channels, height, width), got {tuple(image_shape)}")
    build = NETWORKS.get(options.name)
    network: nn.Module = build(
        num_classes=num_classes, in_channels=image_shape[0], **options.model_dump(exclude={"name"})
    )
    return network
