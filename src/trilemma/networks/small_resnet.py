"""A residual network that trains on a CPU in minutes."""

from __future__ import annotations

from trilemma.networks.depth import blocks_per_stage
from trilemma.networks.preact_block import BlockStyle
from trilemma.networks.residual_network import ResidualNetwork


class SmallResNet(ResidualNetwork):
    """The three-stage CIFAR ResNet of depth 6 n + 2, in its pre-activation form (He et al. 2016, 1603.05027).

    ``[N, C, H, W]`` to logits ``[N, K]``, intended for 8x8 to 64x64 pixels. Depth 8 with width 16 has 0.08 M
    parameters and 12.5 M multiply-accumulates on a 32x32 colour image. The pre-activation form is used because its
    identity path from the first block to the last can be trained without norm layers.

    Args:
        num_classes: K.
        in_channels: C.
        width: channels of the first stage; the other two have 2 and 4 times as many.
        depth: 8, 14, 20, ...
        norm: batch, group or none; with none, convolutions have biases.
        activation: relu, leaky_relu (slope 0.2) or silu.

    Raises:
        ConfigError: a depth that is not 6 n + 2.
        UnknownNameError: an unknown norm or activation.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        depth: int = 8,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            stem=width,
            stages=(width, 2 * width, 4 * width),
            blocks=blocks_per_stage(depth, 2, "small-resnet"),
            style=BlockStyle(norm, activation, bias=norm == "none"),
        )
