"""PreActResNet-18, the network that is commonly used for adversarial training."""

from __future__ import annotations

from trilemma.errors import ConfigError
from trilemma.networks.preact_block import BlockStyle
from trilemma.networks.residual_network import ResidualNetwork


class PreActResNet(ResidualNetwork):
    """PreActResNet-18 in its CIFAR form: 3x3 stem, no max-pooling (He et al. 2016, 1603.05027).

    ``[N, C, H, W]`` to logits ``[N, K]``. 11.17 M parameters and 0.555 G multiply-accumulates on a 32x32
    colour image with 10 classes.

    Args:
        num_classes: K.
        in_channels: C.
        depth: 18.
        norm: batch, group or none; with none, convolutions have biases.
        activation: relu, leaky_relu (slope 0.2) or silu.
        shortcut: input of the projections, activated or raw.
        final_norm: normalise and activate before the pooling. Published weights exist in three forms: with it and
            activated shortcuts (Rice et al. 2020), without it and with raw ones (Wong et al. 2020) or activated ones.

    Raises:
        ConfigError: a depth other than 18, or a shortcut that is neither activated nor raw.
        UnknownNameError: an unknown norm or activation.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        depth: int = 18,
        norm: str = "batch",
        activation: str = "relu",
        shortcut: str = "activated",
        final_norm: bool = True,
    ) -> None:
        if depth != 18:
            raise ConfigError(f"network.depth: preact-resnet has depth 18, got {depth}")
        if shortcut not in ("activated", "raw"):
            raise ConfigError(f"network.shortcut: must be activated or raw, got {shortcut!r}")
        super().__init__(
            num_classes,
            in_channels,
            stem=64,
            stages=(64, 128, 256, 512),
            blocks=2,
            style=BlockStyle(norm, activation, bias=norm == "none", shortcut=shortcut),
            final_norm=final_norm,
        )
