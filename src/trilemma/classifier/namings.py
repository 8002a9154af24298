"""Parameter names of public code bases, and their translation to the names of this package's networks.

Only code bases whose networks compute the same function are listed, so that a renaming is exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from trilemma.networks.preact_block import PreActBlock
from trilemma.networks.preact_resnet import PreActResNet
from trilemma.networks.residual_network import ResidualNetwork
from trilemma.networks.wide_resnet import STEM, WideResNet

_LAYERS = {
    "bn1": "norm1", "bn2": "norm2", "conv1": "conv1", "conv2": "conv2", "shortcut.0": "projection",
}  # fmt: skip


@dataclass(frozen=True)
class Naming:
    """The names that a code base gives to the tensors of one of this package's networks.

    Attributes:
        origin: the code base, for messages.
        network: the class of the network.
        stages: number of its stages.
        block: pattern of the beginning of the names of a block, with the number of the stage and of the block in it.
        first: number of the first stage.
        layers: names of the layers of a block, and this package's names for them.
        outer: the same for the layers outside the blocks.
        unused: names of layers that the network holds but does not apply.
        options: options of the network that its order of operations needs, with the check of a network for them.
    """

    origin: str
    network: type[ResidualNetwork]
    stages: int
    block: re.Pattern[str]
    first: int
    layers: Mapping[str, str]
    outer: Mapping[str, str]
    unused: tuple[str, ...] = ()
    options: Mapping[str, Callable[[ResidualNetwork], bool]] = field(default_factory=dict)

    def translate(self, tensors: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
        """The tensors under this package's names; tensors with other names keep them.

        Args:
            tensors: tensors by their original name, without prefixes of wrappers.
            blocks: number of blocks per stage.
        """
        translated = {}
        for name, value in tensors.items():
            if not any(name == unused or name.startswith(f"{unused}.") for unused in self.unused):
                translated[self._translate_name(name, blocks)] = value
        return translated

    def _translate_name(self, name: str, blocks: int) -> str:
        found = self.block.match(name)
        if found is None:
            return _replaced(name, self.outer) or name
        layer = _replaced(name[found.end() :], self.layers)
        number = (int(found[1]) - self.first) * blocks + int(found[2])
        return name if layer is None else f"blocks.{number}.{layer}"

    def blocks(self, tensors: Mapping[str, Tensor]) -> int:
        """The number of blocks per stage that the names show; 0 if they are names of another code base."""
        numbers = [int(found[2]) for name in tensors if (found := self.block.match(name))]
        return max(numbers, default=-1) + 1

    def missing_option(self, network: ResidualNetwork) -> str | None:
        """The first option that ``network`` lacks to compute what the code base computes, as ``key=value``."""
        return next((option for option, holds in self.options.items() if not holds(network)), None)


def _replaced(name: str, table: Mapping[str, str]) -> str | None:
    """``name`` with the layer at its beginning replaced; a name without a parameter is that of a weight."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + (name[len(old) :] or ".weight")
    return None


def _block(network: ResidualNetwork) -> PreActBlock:
    first = network.blocks[0]
    assert isinstance(first, PreActBlock)
    return first


_STRIDE_1 = {"stride_conv=1": lambda network: not _block(network).raw_shortcut}
_STRIDE_2 = {"stride_conv=2": lambda network: _block(network).raw_shortcut}

NAMINGS = (
    Naming(
        "TRADES, Carmon et al., Rice et al.", WideResNet, 3, re.compile(r"block(\d)\.layer\.(\d+)\."), 1,
        {"bn1": "norm1", "bn2": "norm2", "conv1": "conv1", "conv2": "conv2", "convShortcut": "projection"},
        {"conv1": "stem", "bn1": "norm", "fc": "classifier"}, ("sub_block1",), _STRIDE_1,
    ),
    Naming(
        "Zagoruyko and Komodakis", WideResNet, 3, re.compile(r"group(\d)\.block(\d+)\."), 0,
        {"bn0": "norm1", "bn1": "norm2", "conv0": "conv1", "conv1": "conv2", "convdim": "projection"},
        {"conv0": "stem", "bn": "norm", "fc": "classifier"}, (), _STRIDE_1,
    ),
    Naming(
        "JEM", WideResNet, 3, re.compile(r"layer(\d)\.(\d+)\."), 1, _LAYERS,
        {"conv1": "stem", "bn1": "norm", "class_output": "classifier"}, ("linear", "energy_output"), _STRIDE_2,
    ),
    Naming(
        "wide-resnet.pytorch", WideResNet, 3, re.compile(r"layer(\d)\.(\d+)\."), 1, _LAYERS,
        {"conv1": "stem", "bn1": "norm", "linear": "classifier"}, (), _STRIDE_2,
    ),
    Naming(
        "pytorch-cifar, Rice et al., Wong et al.", PreActResNet, 4, re.compile(r"layer(\d)\.(\d+)\."), 1, _LAYERS,
        {"conv1": "stem", "bn": "norm", "linear": "classifier"},
    ),
)  # fmt: skip

# Names of public networks that no network of this package computes exactly, and why.
OTHERS = (
    (
        re.compile(r"layer\d\.\d+\.(shortcut|downsample)\.1\."),
        "a ResNet with its activations after the sums (as ResNet-18 of pytorch-cifar), and trilemma has only "
        "pre-activation ResNets",
    ),
    (
        re.compile(r"layer\.\d+\.block\.\d+\.batchnorm_0\."),
        "a network of DeepMind's code, which pads strided convolutions on one side only",
    ),
)


def translations(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[Naming, dict[str, Tensor]]]:
    """The tensors under the names of ``network`` for each code base that names a network of its class."""
    if not isinstance(network, ResidualNetwork):
        return []
    return [
        (naming, naming.translate(tensors, len(network.blocks) // naming.stages))
        for naming in NAMINGS
        if naming.network is type(network) and naming.blocks(tensors)
    ]


def recognise(tensors: Mapping[str, Tensor]) -> str | None:
    """The value of ``--network`` for tensors that all have the names of one public code base; else ``None``."""
    for naming in NAMINGS:
        blocks = naming.blocks(tensors)
        named = naming.translate(tensors, blocks)
        layers = {name.partition(".")[0] for name in named}
        stages = {found[1] for name in tensors if (found := naming.block.match(name))}
        if len(stages) == naming.stages and layers | {"norm"} == {"stem", "blocks", "norm", "classifier"}:
            return _network(naming, named, blocks)
    return None


def _network(naming: Naming, named: Mapping[str, Tensor], blocks: int) -> str | None:
    """The network and its options for tensors under this package's names; ``None`` for a size that it does not have."""
    normalised = "norm.weight" in named
    if naming.network is PreActResNet:
        if blocks != 2 or len(named["stem.weight"]) != 64:
            return None
        return (
            "preact-resnet"
            if normalised
            else "preact-resnet,final_norm=false (with shortcut=raw for weights of Wong et al.)"
        )
    width = len(named["blocks.0.conv1.weight"]) // STEM
    options = [f"depth={6 * blocks + 4}", f"width={width}", *naming.options]
    options += ["bias=true"] if "stem.bias" in named and normalised else []
    options += [] if normalised else ["norm=none"]
    return ",".join(["wide-resnet", *(option for option in options if option != "stride_conv=1")])


def unsupported(tensors: Mapping[str, Tensor]) -> str | None:
    """Why no network of this package computes what the code base of these names does; ``None`` if it is unknown."""
    return next((why for pattern, why in OTHERS if any(pattern.match(name) for name in tensors)), None)
