from __future__ import annotations

import pytest
import torch
from torch import nn

from trilemma.config.registry import NETWORKS
from trilemma.errors import ConfigError, UnknownNameError
from trilemma.networks.create import _is_its_state_dict, create_network
from trilemma.networks.options import (
    PreActResNetOptions,
    ShallowCNNOptions,
    SmallCNNOptions,
    SmallResNetOptions,
    WideResNetOptions,
)


@pytest.mark.parametrize(
    "options",
    [
        SmallResNetOptions(width=8, depth=14),
        ShallowCNNOptions(filters=3),
        SmallCNNOptions(width=8, hidden=20, activation="silu"),
        PreActResNetOptions(norm="group"),
        WideResNetOptions(depth=10, width=2, bias=True, stride_conv=2, activation="leaky_relu"),
    ],
    ids=lambda options: options.name,
)
def test_options_become_the_network_they_name(options: SmallResNetOptions) -> None:
    with torch.device("meta"):
        network = create_network(options, num_classes=7, image_shape=(1, 28, 28))
        assert isinstance(network, NETWORKS.get(options.name))
        assert network(torch.empty(2, 1, 28, 28)).shape == (2, 7)


def test_every_option_reaches_the_network() -> None:
    options = WideResNetOptions(depth=16, width=2, norm="none", activation="silu", stride_conv=2, dropout=0.3)
    with torch.device("meta"):
        network = create_network(options, 10, (3, 32, 32))
    blocks = [module for module in network.modules() if type(module).__name__ == "PreActBlock"]
    kinds = {type(module) for module in network.modules()}
    assert len(blocks) == 6
    assert nn.SiLU in kinds
    assert not kinds & {nn.ReLU, nn.BatchNorm2d}
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert blocks[2].conv1.stride == (1, 1)
    assert blocks[2].conv2.stride == (2, 2)


def test_the_shallow_network_is_one_convolution_and_a_linear_layer() -> None:
    network = create_network(ShallowCNNOptions(), 10, (3, 32, 32))
    assert sum(weight.numel() for weight in network.parameters()) == 41_082
    kernel, bias, matrix, offset = network.parameters()
    images = torch.rand(2, 3, 32, 32)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    maps = bias[:, None, None].expand(2, 4, 32, 32)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, :, row : row + 32, column : column + 32]
            maps = maps + torch.einsum("oc,nchw->nohw", kernel[:, :, row, column], shifted)
    logits = maps.clamp_min(0).flatten(1) @ matrix.T + offset
    torch.testing.assert_close(network(images), logits, rtol=1e-4, atol=1e-5)


def test_one_class_is_not_a_classifier() -> None:
    with pytest.raises(ConfigError, match="at least 2 classes"):
        create_network(SmallResNetOptions(), 1, (3, 8, 8))


@pytest.mark.parametrize("shape", [(8, 8), (3, 0, 8)])
def test_images_need_three_positive_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="channels, height, width"):
        create_network(SmallResNetOptions(), 10, shape)  # type: ignore[arg-type]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    options = SmallResNetOptions.model_construct(name="small-resnets")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'small-resnet'"):
        create_network(options, 10, (3, 8, 8))


@pytest.mark.parametrize(
    "options", [SmallResNetOptions(width=4, depth=8), PreActResNetOptions(), SmallCNNOptions(), ShallowCNNOptions()],
    ids=lambda options: options.name,
)  # fmt: skip
def test_a_network_to_be_loaded_is_not_initialised_and_is_the_same_once_loaded(options) -> None:
    drawn = create_network(options, 7, (1, 28, 28)).eval()
    generator = torch.random.get_rng_state()
    empty = create_network(options, 7, (1, 28, 28), initialised=False).eval()
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert {parameter.device.type for parameter in empty.parameters()} == {"cpu"}
    assert not any(bool(tensor.any()) for tensor in empty.state_dict().values())
    empty.load_state_dict(drawn.state_dict())
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(empty(images), drawn(images))
    assert all(parameter.requires_grad for parameter in empty.parameters())


class _Constant(nn.Linear):
    """A network with a tensor of one kind that its state dict lacks, has twice, or may lack."""

    def __init__(self, kind: str) -> None:
        super().__init__(3, 3)
        if kind == "buffer":
            self.register_buffer("mean", torch.ones(3))
        elif kind == "hidden buffer":
            self.register_buffer("table", torch.ones(3), persistent=False)
        elif kind == "attribute":
            self.table = torch.ones(3)
        elif kind == "tied":
            self.inner = nn.Linear(3, 3)
            self.inner.weight = self.weight


def test_a_network_that_holds_more_than_its_weights_is_created_with_all_of_it() -> None:
    _Constant.__module__ = "trilemma.networks.mine"
    assert _is_its_state_dict(_Constant("nothing"))
    assert not any(map(_is_its_state_dict, map(_Constant, ("buffer", "hidden buffer", "attribute", "tied"))))
    _Constant.__module__ = "timm.models"
    assert not _is_its_state_dict(_Constant("nothing"))
