"""Checkpoints in the parameter names of public code bases: the same logits, or one line that says why not.

The networks are written anew from the papers and from what the code bases compute, each in its own order of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trilemma
from trilemma.errors import CheckpointError

Weights = dict[str, Tensor]


def conv(channels_in: int, channels_out: int, size: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=bias)


class TradesBlock(nn.Module):
    """Where the width changes, the activated input goes into both the branch and the shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1, self.conv2 = (
            conv(channels_in, channels_out, 3, stride),
            conv(channels_out, channels_out, 3),
        )
        same = channels_in == channels_out
        self.convShortcut = None if same else conv(channels_in, channels_out, 1, stride)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        branch = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return branch + (x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    def __init__(self, count: int, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                TradesBlock(channels_out if i else channels_in, channels_out, 1 if i else stride)
                for i in range(count)
            )
        )

    def forward(self, x):
        return self.layer(x)


class TradesWideResNet(nn.Module):
    """WRN of TRADES and Carmon et al., with the stage that is created and never applied."""

    def __init__(self, depth: int = 16, width: int = 2, classes: int = 7) -> None:
        super().__init__()
        n, (a, b, c) = (depth - 4) // 6, (16 * width, 32 * width, 64 * width)
        self.conv1 = conv(3, 16, 3)
        self.block1, self.sub_block1 = Stage(n, 16, a, 1), Stage(n, 16, a, 1)
        self.block2, self.block3 = Stage(n, a, b, 2), Stage(n, b, c, 2)
        self.bn1, self.fc = nn.BatchNorm2d(c), nn.Linear(c, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class JemBlock(nn.Module):
    """Biases, the stride in the second convolution, and a shortcut from the input itself."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: bool, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.bn1 = nn.BatchNorm2d(channels_in) if norm else nn.Identity()
        self.conv1 = conv(channels_in, channels_out, 3, bias=True)
        self.bn2 = nn.BatchNorm2d(channels_out) if norm else nn.Identity()
        self.conv2 = conv(channels_out, channels_out, 3, stride, bias=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut.append(conv(channels_in, channels_out, 1, stride, bias=True))

    def forward(self, x):
        hidden = self.conv1(F.leaky_relu(self.bn1(x), self.slope))
        return self.conv2(F.leaky_relu(self.bn2(hidden), self.slope)) + self.shortcut(x)


class JemWideResNet(nn.Module):
    """Features of the network of wide-resnet.pytorch (``slope`` 0, with norm) and of JEM (0.2, without)."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, width: int, classes: int, norm: bool, slope: float) -> None:
        super().__init__()
        self.slope, channels = slope, 16
        self.conv1 = conv(3, 16, 3, bias=True)
        for stage in (1, 2, 3):
            layers = []
            for i in range(2):
                out = 16 * width * 2 ** (stage - 1)
                layers.append(JemBlock(channels, out, 2 if stage > 1 and i == 0 else 1, norm, slope))
                channels = out
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.bn1 = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.linear = nn.Linear(channels, classes)

    def features(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return F.avg_pool2d(F.leaky_relu(self.bn1(x), self.slope), 8).flatten(1)

    def forward(self, x):
        return self.linear(self.features(x))


class Jem(nn.Module):
    """JEM's network: features, one output for the energy and one for the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.f = JemWideResNet(2, 7, norm=False, slope=0.2)
        self.energy_output, self.class_output = nn.Linear(128, 1), nn.Linear(128, 7)

    def forward(self, x):
        return self.class_output(self.f.features(x))


class PreActBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        self.bn1, self.bn2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1, self.conv2 = (
            conv(channels_in, channels_out, 3, stride),
            conv(channels_out, channels_out, 3),
        )
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(conv(channels_in, channels_out, 1, stride))

    def forward(self, x):
        active = F.relu(self.bn1(x))
        skip = self.shortcut(x if self.raw else active) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + skip


class PreActResNet18(nn.Module):
    """``bn`` as Rice et al. 2020; without it and ``raw`` as Wong et al. 2020; without both as pytorch-cifar."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, bn: bool, raw: bool, classes: int = 7) -> None:
        super().__init__()
        channels = 64
        self.conv1 = conv(3, 64, 3)
        for stage, out in enumerate((64, 128, 256, 512), start=1):
            layers = []
            for i in range(2):
                layers.append(PreActBlock(channels, out, 2 if stage > 1 and i == 0 else 1, raw))
                channels = out
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        if bn:
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if hasattr(self, "bn"):
            x = F.relu(self.bn(x))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


def made(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode, with random weights and with statistics that no layer begins with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            scale = 1 / value[0].numel() ** 0.5 if value.dim() > 1 else 0.3
            value.copy_(
                noise * scale + (1 if name.endswith(("running_var", "weight")) and value.dim() == 1 else 0)
            )
            if name.endswith("running_var"):
                value.abs_().add_(0.1)
    return network.eval()


def zagoruyko(network: nn.Module) -> Weights:
    """The parameters of the functional code of Zagoruyko and Komodakis, whose blocks are those of TRADES."""
    layers = {"bn1": "bn0", "bn2": "bn1", "conv1": "conv0", "conv2": "conv1", "convShortcut": "convdim"}
    named = {}
    for name, value in network.state_dict().items():
        if name.startswith("sub_block1") or name.endswith("num_batches_tracked"):
            continue
        if name.startswith("block"):
            stage, _, block, layer, kind = name.split(".")
            name = f"group{int(stage[-1]) - 1}.block{block}.{layers[layer]}.{kind}"
        else:
            name = {"conv1": "conv0", "bn1": "bn"}.get(name.partition(".")[0], "fc") + name[name.index(".") :]
        named[
            name.replace("conv0.weight", "conv0")
            .replace("conv1.weight", "conv1")
            .replace("dim.weight", "dim")
        ] = value
    return named


def plain(network: nn.Module) -> Weights:
    return dict(network.state_dict())


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], str]] = {
    "TRADES": (TradesWideResNet, plain, "wide-resnet,depth=16,width=2"),
    "Carmon": (
        TradesWideResNet,
        lambda network: {
            "state_dict": {f"module.{k}": v for k, v in network.state_dict().items() if "sub_" not in k},
            "num_classes": 7, "epoch": 200, "normalize_input": False,
        },
        "wide-resnet,depth=16,width=2",
    ),
    "Zagoruyko": (
        TradesWideResNet, lambda network: {"params": zagoruyko(network), "epoch": 1}, "wide-resnet,depth=16,width=2"
    ),
    "wide-resnet.pytorch": (
        lambda: JemWideResNet(2, 7, norm=True, slope=0.0), lambda network: {"net": network.state_dict()},
        "wide-resnet,depth=16,width=2,stride_conv=2,bias=true",
    ),
    "JEM": (
        Jem, lambda network: {"model_state_dict": network.state_dict()},
        "wide-resnet,depth=16,width=2,stride_conv=2,norm=none,activation=leaky_relu",
    ),
    "Rice": (lambda: PreActResNet18(bn=True, raw=False), plain, "preact-resnet"),
    "Wong": (lambda: PreActResNet18(bn=False, raw=True), plain, "preact-resnet,final_norm=false,shortcut=raw"),
    "pytorch-cifar": (
        lambda: PreActResNet18(bn=False, raw=False), lambda network: {"net": network.state_dict(), "acc": 95.1},
        "preact-resnet,final_norm=false",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_those_of_the_original_network(form: str, tmp_path: Path) -> None:
    create, content, network = FORMS[form]
    original = made(create())
    torch.save(content(original), tmp_path / "weights.pt")
    clf = trilemma.load(tmp_path / "weights.pt", network=network)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = original(images)
        assert (clf(images) - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
    assert clf.num_classes == 7


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.model.", "model.module.", "net.backbone.", "1."]
)
def test_prefixes_of_wrappers_are_removed_in_any_order(prefix: str, tmp_path: Path) -> None:
    original = made(TradesWideResNet(10, 1))
    weights = {prefix + name: value for name, value in original.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "weights.pt")
    clf = trilemma.load(tmp_path / "weights.pt", network="wide-resnet,depth=10,width=1")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(clf(images), original(images))


@pytest.mark.parametrize(
    ("mean", "std"), [("mu", "sigma"), ("normalize.mean", "normalize.std"), ("0.mean", "0.std")]
)
def test_a_normalisation_in_the_file_is_used(
    mean: str, std: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = made(TradesWideResNet(10, 1))
    prefix = "1." if mean.startswith("0.") else ""
    weights = {prefix + name: value for name, value in original.state_dict().items()}
    weights |= {mean: torch.tensor([0.5, 0.25, 0.5]).view(1, 3, 1, 1), std: torch.full((1, 3, 1, 1), 0.25)}
    torch.save(weights, tmp_path / "weights.pt")
    clf = trilemma.load(tmp_path / "weights.pt", network="wide-resnet,depth=10,width=1")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = original((images - torch.tensor([0.5, 0.25, 0.5]).view(1, 3, 1, 1)) / 0.25)
        torch.testing.assert_close(clf(images), expected)
    assert "using its normalisation, mean [0.5, 0.25, 0.5], std [0.25, 0.25, 0.25]" in capsys.readouterr().err


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        trilemma.load(path, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_order_of_operations_is_refused_though_every_tensor_fits(tmp_path: Path) -> None:
    torch.save(TradesWideResNet(10, 1).state_dict(), tmp_path / "trades.pt")
    line = refusal(tmp_path / "trades.pt", network="wide-resnet,depth=10,width=1,stride_conv=2")
    assert "has the names of TRADES" in line and "add stride_conv=1 to its options" in line
    torch.save(JemWideResNet(1, 7, True, 0.0).state_dict(), tmp_path / "other.pt")
    line = refusal(tmp_path / "other.pt", network="wide-resnet,depth=16,width=1,bias=true")
    assert "has the names of wide-resnet.pytorch" in line and "add stride_conv=2 to its options" in line


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("JEM", "Wong")])
def test_weights_alone_are_answered_with_the_network_that_their_names_fit(form: str, tmp_path: Path) -> None:
    create, content, network = FORMS[form]
    torch.save(content(create()), tmp_path / "weights.pt")
    line = refusal(tmp_path / "weights.pt")
    assert f"; by their names they fit --network {network}" in line


def test_a_wrong_size_names_ten_tensors_and_the_right_network(tmp_path: Path) -> None:
    torch.save(TradesWideResNet(16, 2).state_dict(), tmp_path / "weights.pt")
    line = refusal(tmp_path / "weights.pt", network="wide-resnet,depth=22,width=2")
    assert "12 unknown" not in line and line.count("blocks.") == 10
    assert line.endswith("they fit --network wide-resnet,depth=16,width=2")


def test_networks_that_none_of_ours_computes_are_named(tmp_path: Path) -> None:
    names = (
        "conv1.weight",
        "bn1.weight",
        "layer1.0.conv1.weight",
        "layer2.0.shortcut.1.weight",
        "linear.weight",
    )
    torch.save({name: torch.ones(64) for name in names}, tmp_path / "resnet.pt")
    line = refusal(tmp_path / "resnet.pt", network="wide-resnet")
    assert "activations after the sums" in line and line.endswith("use --model MODULE:FUNCTION")
    torch.save({"module.layer.0.block.0.batchnorm_0.weight": torch.ones(16)}, tmp_path / "dm.pt")
    assert "pads strided convolutions on one side only" in refusal(tmp_path / "dm.pt")
