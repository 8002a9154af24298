"""Creates normalisation and activation layers by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from trilemma.errors import UnknownNameError, nearest

LEAKY_SLOPE = 0.2
GROUPS = 32
CHANNELS_PER_GROUP = 4


def _group_norm(channels: int) -> nn.Module:
    # At least 4 channels per group: a group of one channel is constant on 1x1 feature maps, as small images have.
    groups = math.gcd(GROUPS, channels, max(1, channels // CHANNELS_PER_GROUP))
    return nn.GroupNorm(groups, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": _group_norm,
    "none": lambda channels: nn.Identity(),
}
# Not in-place: without a norm layer the input of the activation is also the shortcut.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(LEAKY_SLOPE),
    "silu": nn.SiLU,
}


def make_norm(norm: str, channels: int) -> nn.Module:
    """Creates a normalisation layer for ``[N, channels, H, W]``.

    ``group`` is GroupNorm (Wu and He 2018) with up to 32 groups, of at least 4 channels where the number of channels
    allows it; ``none`` is the identity.

    Raises:
        UnknownNameError: not one of batch, group, none.
    """
    if norm not in _NORMS:
        raise UnknownNameError(
            f"network.norm: unknown {norm!r}.{nearest(norm, _NORMS)} Norms: {', '.join(_NORMS)}"
        )
    return _NORMS[norm](channels)


def make_activation(activation: str) -> nn.Module:
    """Creates an elementwise activation, not in-place; ``leaky_relu`` has slope 0.2.

    Raises:
        UnknownNameError: not one of relu, leaky_relu, silu.
    """
    if activation not in _ACTIVATIONS:
        raise UnknownNameError(
            f"network.activation: unknown {activation!r}.{nearest(activation, _ACTIVATIONS)} "
            f"Activations: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[activation]()
