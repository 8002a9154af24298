"""Creates a network from its options, the number of classes and the image shape."""

from __future__ import annotations

from typing import Any

from torch import nn

from trilemma.config.registry import NETWORKS
from trilemma.errors import ConfigError


def create_network(options: Any, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Creates the network ``options.name`` on the default device: images ``[N, C, H, W]`` to logits ``[N, K]``.

    The target of the registry row is called with ``num_classes``, ``in_channels`` and the fields of the options as
    keyword arguments. Weights are drawn from torch's default generator; seed it for reproducible weights.

    Args:
        options: an instance of a class of :mod:`trilemma.networks.options`, or of a user's options class.
        num_classes: K, at least 2.
        image_shape: ``(C, H, W)``, pixels.

    Raises:
        ConfigError: fewer than two classes, an image without pixels, or an invalid option.
        UnknownNameError: no such network.
        MissingExtraError: the network needs a package that is not installed.
    """
    if num_classes < 2:
        raise ConfigError(f"network: a classifier needs at least 2 classes, got {num_classes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(
            f"network: image_shape must be (channels, height, width), each at least 1, got {tuple(image_shape)}"
        )
    build = NETWORKS.get(options.name)
    network: nn.Module = build(
        num_classes=num_classes, in_channels=image_shape[0], **options.model_dump(exclude={"name"})
    )
    return network
