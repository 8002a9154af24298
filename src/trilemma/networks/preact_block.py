"""The pre-activation residual block of all residual networks in this package (He et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from trilemma.networks.layers import make_activation, make_norm


@dataclass(frozen=True)
class BlockStyle:
    """The options that all blocks of a network share.

    Attributes:
        norm: batch, group or none.
        activation: relu, leaky_relu or silu.
        bias: whether convolutions have biases.
        stride_conv: which 3x3 convolution has the stride. 2 is JEM's block (Grathwohl et al. 2020), in which the
            projection is applied to the input of the block instead of the activated input.
        dropout: dropout probability before the second convolution.
        shortcut: ``raw`` applies the projection to the input of the block with ``stride_conv`` 1 too.
    """

    norm: str = "batch"
    activation: str = "relu"
    bias: bool = False
    stride_conv: int = 1
    dropout: float = 0.0
    shortcut: str = "activated"

    @property
    def raw_shortcut(self) -> bool:
        """Whether the projection is applied to the input of the block instead of the activated input."""
        return self.stride_conv == 2 or self.shortcut == "raw"


class PreActBlock(nn.Module):
    """``x + conv2(act(norm2(conv1(act(norm1(x))))))``, He et al. 2016, figure 4(e).

    ``[N, channels_in, H, W]`` to ``[N, channels_out, ceil(H / stride), ceil(W / stride)]``. If channels or size change,
    the shortcut is a 1x1 convolution instead of the identity.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        first, second = (stride, 1) if style.stride_conv == 1 else (1, stride)
        self.norm1 = make_norm(style.norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, first, padding=1, bias=style.bias)
        self.norm2 = make_norm(style.norm, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, second, padding=1, bias=style.bias)
        self.activation = make_activation(style.activation)
        self.dropout = nn.Dropout(style.dropout) if style.dropout > 0 else nn.Identity()
        self.raw_shortcut = style.raw_shortcut
        self.projection = (
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=style.bias)
            if stride != 1 or channels_in != channels_out
            else None
        )

    def forward(self, inputs: Tensor) -> Tensor:
        activated = self.activation(self.norm1(inputs))
        shortcut = inputs
        if self.projection is not None:
            shortcut = self.projection(inputs if self.raw_shortcut else activated)
        hidden = self.activation(self.norm2(self.conv1(activated)))
        residual: Tensor = self.conv2(self.dropout(hidden))
        return shortcut + residual
