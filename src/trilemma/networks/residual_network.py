"""Residual networks: stem, stages of pre-activation blocks, global average pooling and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.networks.initialise import initialise
from trilemma.networks.layers import make_activation, make_norm
from trilemma.networks.preact_block import BlockStyle, PreActBlock


class ResidualNetwork(nn.Module):
    """Base class of the residual networks: images ``[N, C, H, W]`` to logits ``[N, K]``, any H and W.

    The first stage keeps the image size, each further stage halves it. Weights are drawn from torch's default
    generator.

    Args:
        num_classes: K.
        in_channels: C; 1 for grey images, 3 for colour.
        stem: number of channels after the first convolution.
        stages: number of channels of each stage.
        blocks: number of residual blocks per stage.
        style: norm, activation and other options of the blocks.
        final_norm: normalise and activate the output of the last block.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stem: int,
        stages: Sequence[int],
        blocks: int,
        style: BlockStyle,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, stem, 3, padding=1, bias=style.bias)
        body: list[nn.Module] = []
        channels = stem
        for stage, width in enumerate(stages):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                body.append(PreActBlock(channels, width, stride, style))
                channels = width
        self.blocks = nn.Sequential(*body)
        self.norm = make_norm(style.norm, channels) if final_norm else nn.Identity()
        self.activation = make_activation(style.activation) if final_norm else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self, style)

    def features(self, images: Tensor) -> Tensor:
        """The input of the linear classifier, ``[N, channels]``."""
        maps = self.activation(self.norm(self.blocks(self.stem(images))))
        return F.adaptive_avg_pool2d(maps, 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits
