from __future__ import annotations

import pytest
import torch
from torch import nn

from trilemma.networks.cost import count_macs, count_parameters
from trilemma.networks.preact_resnet import PreActResNet
from trilemma.networks.small_resnet import SmallResNet
from trilemma.networks.wide_resnet import WideResNet


def preact_18_macs() -> int:
    """By hand, from the paper's architecture: 3x3 convolutions, three 1x1 projections, the classifier."""
    total = 3 * 64 * 9 * 32**2 + 4 * 64 * 64 * 9 * 32**2
    for width, side in ((128, 16), (256, 8), (512, 4)):
        total += (width // 2 * width * 9 + 3 * width * width * 9 + width // 2 * width) * side**2
    return total + 512 * 10


def test_preact_resnet_18_has_the_published_size() -> None:
    with torch.device("meta"):
        network = PreActResNet(10)
    assert count_parameters(network) == 11_172_170  # Rice et al. 2020, with the final BatchNorm
    assert count_macs(network, (3, 32, 32)) == preact_18_macs()
    assert preact_18_macs() / 1e9 == pytest.approx(0.555, abs=0.001)


def test_wrn_28_10_has_the_published_size() -> None:
    with torch.device("meta"):
        network = WideResNet(10, depth=28, width=10)
    assert count_parameters(network) == 36_479_194
    assert count_macs(network, (3, 32, 32)) / 1e9 == pytest.approx(5.24, abs=0.01)


def test_jem_network_differs_from_wrn_28_10_by_biases_and_norms_alone() -> None:
    with torch.device("meta"):
        plain = WideResNet(10)
        jem = WideResNet(10, norm="none", activation="leaky_relu", bias=True, stride_conv=2)
    biases = sum(m.out_channels for m in jem.modules() if isinstance(m, nn.Conv2d))
    norms = sum(2 * m.num_features for m in plain.modules() if isinstance(m, nn.BatchNorm2d))
    assert count_parameters(jem) == 36_479_194 + biases - norms


def test_stride_on_the_second_convolution_costs_the_first_one_at_full_resolution() -> None:
    with torch.device("meta"):
        first, second = (WideResNet(10, depth=10, width=1, stride_conv=conv) for conv in (1, 2))
    extra = 16 * 32 * 9 * (32**2 - 16**2) + 32 * 64 * 9 * (16**2 - 8**2)
    assert count_macs(second, (3, 32, 32)) - count_macs(first, (3, 32, 32)) == extra


def test_small_resnet_8_is_small() -> None:
    network = SmallResNet(10)
    stem, stages, projections = 432, 4_608 + 13_824 + 55_296, 512 + 2_048
    norms, classifier = 480, 650
    assert count_parameters(network) == stem + stages + projections + norms + classifier == 77_850
    assert count_macs(network, (3, 32, 32)) == 12_501_632


def test_macs_are_those_of_each_convolution_and_linear_layer() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5)
    )
    assert count_macs(network, (4, 8, 8)) == 6 * 16 * (2 * 9) + 96 * 5


def test_counting_leaves_the_network_alone() -> None:
    network = SmallResNet(10).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    count_macs(network, (3, 8, 8))
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name]), name


def test_frozen_parameters_are_not_counted() -> None:
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    assert count_parameters(network) == 6
