"""The options of every network: one frozen class each, free of torch.

They stand in this one file, not in the networks' own, so that a misspelt option is answered without
importing torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from trilemma.config.section import Section
from trilemma.networks.depth import blocks_per_stage

NormName = Literal["batch", "group", "none"]
ActivationName = Literal["relu", "leaky_relu", "silu"]

Norm = Annotated[NormName, Field(description="none: no normalisation layer, and biased convolutions")]
Activation = Annotated[ActivationName, Field(description="leaky_relu has slope 0.2")]


def _six_n_plus(extra: int, network: str) -> AfterValidator:
    def check(depth: int) -> int:
        blocks_per_stage(depth, extra, network)
        return depth

    return AfterValidator(check)


class SmallResNetOptions(Section):
    name: Literal["small-resnet"] = "small-resnet"
    width: PositiveInt = Field(16, description="channels of the first stage; then 2 and 4 times as many")
    depth: Annotated[int, _six_n_plus(2, "small-resnet")] = Field(8, description="layers, 6 n + 2: 8, 14, 20")
    norm: Norm = "batch"
    activation: Activation = "relu"


class PreActResNetOptions(Section):
    name: Literal["preact-resnet"] = "preact-resnet"
    depth: Literal[18] = Field(18, description="layers")
    norm: Norm = "batch"
    activation: Activation = "relu"


class WideResNetOptions(Section):
    name: Literal["wide-resnet"] = "wide-resnet"
    depth: Annotated[int, _six_n_plus(4, "wide-resnet")] = Field(28, description="layers, 6 n + 4: 28, 34")
    width: PositiveInt = Field(10, description="widening factor of the stages' 16, 32 and 64 channels")
    norm: Norm = "batch"
    activation: Activation = "relu"
    bias: bool = Field(False, description="biased convolutions (always so where norm is none)")
    stride_conv: Literal[1, 2] = Field(1, description="convolution with a block's stride; 2: JEM's block")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="drop probability before a block's second convolution"
    )


class TimmOptions(Section):
    name: Literal["timm"] = "timm"
    model: str = Field(min_length=1, description="timm's name of the network, such as resnet18")
    pretrained: bool = Field(False, description="start from timm's published weights (downloads them)")
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further arguments of timm.create_model, such as img_size",
    )
