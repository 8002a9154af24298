"""What holds for every residual network: shapes, gradients, layout, initialisation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trilemma.data import load_images
from trilemma.errors import ConfigError, UnknownNameError
from trilemma.networks.preact_resnet import PreActResNet
from trilemma.networks.residual_network import ResidualNetwork
from trilemma.networks.small_resnet import SmallResNet
from trilemma.networks.wide_resnet import WideResNet

Build = Callable[..., ResidualNetwork]


def small(num_classes: int = 10, **options: object) -> ResidualNetwork:
    return SmallResNet(num_classes, **{"width": 8, **options})  # type: ignore[arg-type]


def wide(num_classes: int = 10, **options: object) -> ResidualNetwork:
    return WideResNet(num_classes, **{"depth": 10, "width": 1, **options})  # type: ignore[arg-type]


def jem(num_classes: int = 10, **options: object) -> ResidualNetwork:
    return wide(num_classes, **{"activation": "leaky_relu", "bias": True, "stride_conv": 2, **options})


def preact(num_classes: int = 10, **options: object) -> ResidualNetwork:
    return PreActResNet(num_classes, **options)  # type: ignore[arg-type]


CHEAP = pytest.mark.parametrize("build", [small, wide, jem])
ALL = pytest.mark.parametrize("build", [small, wide, jem, preact])
NORMS = pytest.mark.parametrize("norm", ["batch", "group", "none"])
NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@ALL
@pytest.mark.parametrize("side", [8, 9, 28, 32, 64])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 10), (3, 100)])
def test_every_image_size_gives_one_logit_per_class(
    build: Build, side: int, channels: int, classes: int
) -> None:
    with torch.device("meta"):
        network = build(classes, in_channels=channels)
        assert network(torch.empty(2, channels, side, side)).shape == (2, classes)


@pytest.mark.parametrize("shape", [(8, 24), (40, 17)])
def test_images_need_not_be_square(shape: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert small()(torch.empty(2, 3, *shape)).shape == (2, 10)


@ALL
def test_norm_none_has_no_normalisation_and_a_bias_in_every_convolution(build: Build) -> None:
    with torch.device("meta"):
        network = build(norm="none")
    assert not [m for m in network.modules() if isinstance(m, NORM_LAYERS)]
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))


@CHEAP
@NORMS
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_gradient_reaches_every_parameter_and_the_images(build: Build, norm: str, activation: str) -> None:
    torch.manual_seed(0)
    network = build(norm=norm, activation=activation)
    images = torch.rand(8, 3, 8, 8, requires_grad=True)
    network(images).logsumexp(1).mean().backward()
    assert images.grad is not None
    assert images.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@CHEAP
@NORMS
def test_channels_last_gives_the_same_logits(build: Build, norm: str) -> None:
    torch.manual_seed(0)
    network = build(norm=norm).eval()
    images = torch.rand(4, 3, 16, 16)
    expected = network(images)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(network(images.contiguous(memory_format=torch.channels_last)), expected)


@CHEAP
@pytest.mark.parametrize("norm", ["group", "none"])
def test_without_batch_norm_an_image_does_not_see_its_batch(build: Build, norm: str) -> None:
    torch.manual_seed(0)
    network = build(norm=norm).train()
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


@pytest.mark.parametrize("stride_conv", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_without_norms_the_signal_keeps_its_size_at_any_depth(stride_conv: int, activation: str) -> None:
    torch.manual_seed(0)
    sizes = []
    for depth in (10, 40):
        network = WideResNet(
            10, depth=depth, width=1, norm="none", activation=activation, stride_conv=stride_conv
        )
        stem = network.stem(torch.randn(8, 3, 16, 16))
        sizes.append((network.blocks(stem).std() / stem.std()).item())
    assert all(0.4 < size < 4 for size in sizes), sizes


@pytest.mark.slow
@pytest.mark.parametrize(("build", "options"), [(small, {"width": 16}), (jem, {"depth": 40})])
def test_without_norms_even_a_deep_network_learns(build: Build, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    network = build(in_channels=1, norm="none", **options)
    digits = load_images("digits", "all")
    images, labels = digits.float_images(), digits.labels
    optimiser = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9)
    for batch in torch.randperm(1200).repeat(2).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimiser.step()
    assert (network(images[1400:]).argmax(1) == labels[1400:]).float().mean() > 0.5


def test_the_classifier_is_linear_in_the_features() -> None:
    torch.manual_seed(0)
    network = small().eval()
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(network.classifier(network.features(images)), network(images))


def test_dropout_is_active_in_train_mode_only() -> None:
    torch.manual_seed(0)
    network = wide(dropout=0.5, norm="none")
    images = torch.rand(2, 3, 8, 8)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_the_same_seed_gives_the_same_network() -> None:
    torch.manual_seed(3)
    first = small().state_dict()
    torch.manual_seed(3)
    second = small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SmallResNet(10, depth=10), ConfigError, r"6 n \+ 2, got 10; try 8 or 14"),
        (lambda: SmallResNet(10, depth=2), ConfigError, "try 8 or 14"),
        (lambda: WideResNet(10, depth=30), ConfigError, r"6 n \+ 4, got 30; try 28 or 34"),
        (lambda: WideResNet(10, depth=10, width=1, stride_conv=3), ConfigError, "stride_conv.* got 3"),
        (lambda: PreActResNet(10, depth=34), ConfigError, "depth 18, got 34"),
        (lambda: SmallResNet(10, norm="bach"), UnknownNameError, "Did you mean 'batch'"),
        (lambda: SmallResNet(10, activation="rellu"), UnknownNameError, "Did you mean 'relu'"),
    ],
)
def test_impossible_networks_say_what_is_possible(
    call: Callable[[], nn.Module], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call()
