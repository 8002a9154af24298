"""How many residual blocks a depth stands for."""

from __future__ import annotations

from trilemma.errors import ConfigError

STAGES = 3
CONVS_PER_BLOCK = 2


def blocks_per_stage(depth: int, extra: int, network: str) -> int:
    """The n of a three-stage residual network of depth 6 n + ``extra``.

    Args:
        depth: weight layers, as papers count them.
        extra: layers outside the residual branches: 2 for a CIFAR ResNet (stem and classifier), 4 for a
            wide ResNet, which also counts two of its three projections.
        network: the name that the error carries.

    Raises:
        ConfigError: no n of 1 or more gives this depth; names the nearest depths that exist.
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
