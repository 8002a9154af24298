"""The number of residual blocks per stage for a given depth."""

from __future__ import annotations

from trilemma.errors import ConfigError

STAGES = 3
CONVS_PER_BLOCK = 2


def blocks_per_stage(depth: int, extra: int, network: str) -> int:
    """The number n of blocks per stage of a three-stage residual network of depth 6 n + ``extra``.

    Args:
        depth: number of weight layers, as papers count them.
        extra: layers outside the residual branches: 2 for a CIFAR ResNet (stem and classifier), 4 for a
            wide ResNet, which also counts two of its three projections.
        network: name of the network, for the error message.

    Raises:
        ConfigError: ``depth`` is not 6 n + ``extra`` with n of at least 1; the message suggests two possible depths.
    """
    per_n = STAGES * CONVS_PER_BLOCK
    blocks, rest = divmod(depth - extra, per_n)
    if blocks >= 1 and rest == 0:
        return blocks
    lower = per_n * max(blocks, 1) + extra
    raise ConfigError(
        f"network.depth: {network} has a depth of {per_n} n + {extra}, got {depth}; "
        f"try {lower} or {lower + per_n}"
    )
