"""Wide residual networks, WRN-depth-width."""

from __future__ import annotations

from trilemma.errors import ConfigError
from trilemma.networks.depth import blocks_per_stage
from trilemma.networks.preact_block import BlockStyle
from trilemma.networks.residual_network import ResidualNetwork

STEM = 16


class WideResNet(ResidualNetwork):
    """WRN-depth-width (Zagoruyko and Komodakis 2016, 1605.07146).

    ``[N, C, H, W]`` to logits ``[N, K]``. WRN-28-10 has 36.5 M parameters and 5.24 G multiply-accumulates on
    a 32x32 colour image with 10 classes. The network of JEM (Grathwohl et al. 2020) is ``norm="none"``,
    ``activation="leaky_relu"``, ``bias=True``, ``stride_conv=2``; that of JEM++ and SADA-JEM has
    ``norm="batch"`` instead.

    Args:
        num_classes: K.
        in_channels: C.
        depth: 6 n + 4: 10, 16, 22, 28, 34, ...
        width: widening factor; the stages have 16, 32 and 64 times as many channels.
        norm: batch, group or none.
        activation: relu, leaky_relu (slope 0.2) or silu.
        bias: convolutions have biases; always true with ``norm="none"``, where no other layer has an offset.
        stride_conv: which 3x3 convolution of a block has the stride in stages 2 and 3. With 2 the first convolution
            runs at full resolution, and the projection is applied to the input of the block before activation.
        dropout: dropout probability before the second convolution of a block, in [0, 1).

    Raises:
        ConfigError: a depth that is not 6 n + 4, or a stride_conv that is not 1 or 2.
        UnknownNameError: an unknown norm or activation.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        depth: int = 28,
        width: int = 10,
        norm: str = "batch",
        activation: str = "relu",
        bias: bool = False,
        stride_conv: int = 1,
        dropout: float = 0.0,
    ) -> None:
        if stride_conv not in (1, 2):
            raise ConfigError(f"network.stride_conv: must be 1 or 2, got {stride_conv}")
        super().__init__(
            num_classes,
            in_channels,
            stem=STEM,
            stages=(STEM * width, 2 * STEM * width, 4 * STEM * width),
            blocks=blocks_per_stage(depth, 4, "wide-resnet"),
            style=BlockStyle(norm, activation, bias or norm == "none", stride_conv, dropout),
        )
