"""The network of Wong et al. 2020 for MNIST: its layers, its size, and the images that it accepts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trilemma.config.registry import NETWORKS, Row
from trilemma.errors import ConfigError, UnknownNameError
from trilemma.networks.cost import count_macs, count_parameters
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallCNNOptions
from trilemma.networks.small_cnn import SmallCNN


def published(classes: int = 10) -> nn.Module:
    """The layers as the authors' program lists them."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip


def test_the_defaults_are_the_published_network() -> None:
    torch.manual_seed(0)
    expected = published()
    torch.manual_seed(0)
    network = create_network(SmallCNNOptions(), 10, (1, 28, 28))
    images = torch.rand(3, 1, 28, 28)
    assert torch.allclose(network(images), expected(images), rtol=0, atol=1e-5)


def test_it_has_the_size_that_its_description_states() -> None:
    network = SmallCNN(10)
    convolutions = 16 * 16 * 14**2 + 16 * 32 * 16 * 7**2
    assert count_macs(network, (1, 28, 28)) == convolutions + 1568 * 100 + 100 * 10 == 609_384
    assert count_parameters(network) == 166_406


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 30, 17), (2, 4, 4)])
def test_the_linear_layer_fits_the_image_shape(shape: tuple[int, int, int]) -> None:
    network = create_network(SmallCNNOptions(width=4, hidden=12), 7, shape)
    images = torch.rand(2, *shape)
    assert isinstance(network, SmallCNN)
    assert network(images).shape == (2, 7)
    assert torch.equal(network.classifier(network.features(images)), network(images))


def test_images_below_four_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4x4 pixels, got 28x3"):
        create_network(SmallCNNOptions(), 10, (1, 28, 3))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'silu'"):
        SmallCNN(10, activation="sillu")


def whole(num_classes: int, image_shape: tuple[int, int, int], hidden: int = 5) -> nn.Module:
    pixels = image_shape[0] * image_shape[1] * image_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))


def test_a_network_of_ones_own_may_ask_for_the_image_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS._rows, "whole", Row(f"{__name__}:whole", "two linear layers"))
    options = NETWORKS.options("whole").model_validate({"hidden": 3})
    assert options.model_dump() == {"name": "whole", "hidden": 3}, "the image shape is no option"
    assert create_network(options, 4, (1, 9, 7))(torch.rand(2, 1, 9, 7)).shape == (2, 4)
