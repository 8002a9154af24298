"""Weights at the start: He et al. 2015, and smaller branches where no norm layer holds the signal."""

from __future__ import annotations

import torch
from torch import nn

from trilemma.networks.layers import LEAKY_SLOPE
from trilemma.networks.preact_block import BlockStyle, PreActBlock


def initialise(network: nn.Module, style: BlockStyle) -> None:
    """Draws every convolution of ``network`` in place, from torch's default generator; biases are 0.

    With norm layers: normal, variance 2 / fan-out.

    Without: variance 2 / fan-in, which keeps the size of a signal through an activation and a convolution.
    Each of the L blocks would still add its branch to the shortcut and so double the variance, 2^L in all.
    The last convolution of a branch is therefore scaled by L^-1/2, which bounds the growth by
    (1 + 1/L)^L < e at any depth (Hayou et al. 2021). A zero there, as in Fixup (Zhang et al. 2019), would
    bound it as well, but leaves the first convolution of every branch without a gradient at the first step.
    """
    normalised = style.norm != "none"
    slope = LEAKY_SLOPE if style.activation == "leaky_relu" else 0.0
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, slope, "fan_out" if normalised else "fan_in", nonlinearity="leaky_relu"
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if not normalised:
        _scale_branches([module for module in network.modules() if isinstance(module, PreActBlock)])


@torch.no_grad()
def _scale_branches(blocks: list[PreActBlock]) -> None:
    for block in blocks:
        block.conv2.weight *= len(blocks) ** -0.5
        if block.raw_shortcut and block.projection is not None:
            # No activation halves the second moment of what this one reads, so He's factor 2 does not apply.
            block.projection.weight *= 2**-0.5
