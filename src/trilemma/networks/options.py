"""The options of the built-in networks, one frozen class each.

They are defined here and not beside the networks, so that options can be validated without importing torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from trilemma.config.section import Section
from trilemma.networks.depth import blocks_per_stage

NormName = Literal["batch", "group", "none"]
ActivationName = Literal["relu", "leaky_relu", "silu"]

Norm = Annotated[
    NormName, Field(description="normalisation layer; none: no normalisation, and convolutions have biases")
]
Activation = Annotated[ActivationName, Field(description="activation function; leaky_relu has slope 0.2")]


def _six_n_plus(extra: int, network: str) -> AfterValidator:
    """A validator that accepts depths of 6 n + ``extra``."""

    def check(depth: int) -> int:
        blocks_per_stage(depth, extra, network)
        return depth

    return AfterValidator(check)


class SmallResNetOptions(Section):
    """Options of :class:`trilemma.networks.small_resnet.SmallResNet`."""

    name: Literal["small-resnet"] = "small-resnet"
    width: PositiveInt = Field(
        16, description="channels of the first stage; the others have 2 and 4 times as many"
    )
    depth: Annotated[int, _six_n_plus(2, "small-resnet")] = Field(
        8, description="number of layers, 6 n + 2: 8, 14, 20, ..."
    )
    norm: Norm = "batch"
    activation: Activation = "relu"


class SmallCNNOptions(Section):
    """Options of :class:`trilemma.networks.small_cnn.SmallCNN`."""

    name: Literal["small-cnn"] = "small-cnn"
    width: PositiveInt = Field(
        16, description="channels of the first convolution; the second has twice as many"
    )
    hidden: PositiveInt = Field(100, description="units of the first linear layer")
    activation: Activation = "relu"


class ShallowCNNOptions(Section):
    """Options of :class:`trilemma.networks.shallow_cnn.ShallowCNN`."""

    name: Literal["shallow-cnn"] = "shallow-cnn"
    filters: PositiveInt = Field(4, description="number of 3x3 filters of the one convolution")
    activation: Activation = "relu"


class PreActResNetOptions(Section):
    """Options of :class:`trilemma.networks.preact_resnet.PreActResNet`."""

    name: Literal["preact-resnet"] = "preact-resnet"
    depth: Literal[18] = Field(18, description="number of layers")
    norm: Norm = "batch"
    activation: Activation = "relu"
    shortcut: Literal["activated", "raw"] = Field(
        "activated", description="input of the projections: activated, or raw as in Wong et al. 2020"
    )
    final_norm: bool = Field(
        True, description="normalise and activate before the pooling; false as in Wong et al. 2020"
    )


class WideResNetOptions(Section):
    """Options of :class:`trilemma.networks.wide_resnet.WideResNet`."""

    name: Literal["wide-resnet"] = "wide-resnet"
    depth: Annotated[int, _six_n_plus(4, "wide-resnet")] = Field(
        28, description="number of layers, 6 n + 4: 10, 16, 22, 28, 34, ..."
    )
    width: PositiveInt = Field(
        10, description="widening factor; the stages have 16, 32 and 64 times as many channels"
    )
    norm: Norm = "batch"
    activation: Activation = "relu"
    bias: bool = Field(False, description="convolutions have biases (always true if norm is none)")
    stride_conv: Literal[1, 2] = Field(
        1, description="which convolution of a block has the stride; 2: the block of JEM's implementation"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout probability before the second convolution of a block"
    )


class TimmOptions(Section):
    """Options of :func:`trilemma.networks.timm_network.timm_network`."""

    name: Literal["timm"] = "timm"
    model: str = Field(min_length=1, description="name of the network in timm, such as resnet18")
    pretrained: bool = Field(False, description="initialise with timm's published weights (downloads them)")
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further arguments of timm.create_model, such as img_size",
    )
