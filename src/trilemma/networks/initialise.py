"""Weight initialisation: He et al. 2015, with down-scaled residual branches in networks without norm layers."""

from __future__ import annotations

import torch
from torch import nn

from trilemma.networks.layers import LEAKY_SLOPE
from trilemma.networks.preact_block import BlockStyle, PreActBlock


def initialise(network: nn.Module, style: BlockStyle) -> None:
    """Initialises every convolution of ``network`` in place, from torch's default generator; biases are 0.

    With norm layers the weights are normal with variance 2 / fan-out.

    Without norm layers the variance is 2 / fan-in, which preserves the variance of a signal through an activation and a
    convolution. Each of the L blocks would still double the variance by adding its branch to the shortcut, 2^L in all.
    The last convolution of each branch is therefore scaled by L^-1/2, which bounds the growth by (1 + 1/L)^L < e at any
    depth (Hayou et al. 2021). Initialising it to zero, as Fixup does (Zhang et al. 2019), would bound the growth as
    well, but the first convolution of every branch would have no gradient at the first step.
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
    """Scales the residual branches for a network without norm layers, see :func:`initialise`."""
    for block in blocks:
        block.conv2.weight *= len(blocks) ** -0.5
        if block.raw_shortcut and block.projection is not None:
            # The input of this projection is not activated, so that He's factor 2 (a ReLU halves the second moment)
            # does not apply.
            block.projection.weight *= 2**-0.5
