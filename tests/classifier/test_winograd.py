"""Convolutions by Winograd's algorithm: the same numbers as a direct convolution, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.classifier import winograd
from trilemma.classifier.winograd import (
    FixedConvolution,
    WinogradConvolutions,
    convolution,
    has_wide_convolutions,
    pays,
    transformed_kernel,
    transposed_kernel,
    weight_gradient,
)

WIDE = 128


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())


def assert_close(values: Tensor, exact: Tensor, left: Tensor, right: Tensor, terms: int) -> None:
    """Equal up to the rounding of sums of so many products; a tile mixes neighbours, so their size counts too."""
    scale = terms * float(left.abs().max() * right.abs().max()) + 1.0
    assert values.shape == exact.shape and float((values.double() - exact).abs().max()) < 1e-6 * scale


def test_the_transforms_are_those_of_polynomial_products() -> None:
    """In exact arithmetic a tile of a correlation is ``A' [(G g G') * (B' d B)] A``, here for one channel in NumPy."""
    random = np.random.default_rng(0)
    window, kernel = random.standard_normal((6, 6)), random.standard_normal((3, 3))
    of_products, of_window, of_kernel = (matrix.double().numpy() for matrix in winograd._transforms())
    tile = of_products @ ((of_kernel @ kernel.ravel()) * (of_window @ window.ravel()))
    correlation = [[(window[i : i + 3, j : j + 3] * kernel).sum() for j in range(4)] for i in range(4)]
    # The matrices are rounded to float32.
    np.testing.assert_allclose(tile.reshape(4, 4), correlation, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 13), st.integers(1, 13),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_all_three_products_are_those_of_a_direct_convolution_for_any_size(
    count: int, channels: int, outputs: int, height: int, width: int, with_bias: bool, channels_last: bool
) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    images = normal(count, channels, height, width).contiguous(memory_format=memory_format)
    weight = normal(outputs, channels, 3, 3, seed=1).contiguous(memory_format=memory_format)
    bias = normal(outputs, seed=2) if with_bias else None
    upstream = normal(count, outputs, height, width, seed=3)
    exact_images, exact_weight = (values.double().requires_grad_() for values in (images, weight))
    exact = F.conv2d(exact_images, exact_weight, None if bias is None else bias.double(), padding=1)
    exact.backward(upstream.double())
    assert exact_images.grad is not None and exact_weight.grad is not None
    assert_close(
        convolution(images, transformed_kernel(weight), bias), exact.detach(), images, weight, 9 * channels
    )
    assert_close(
        convolution(upstream, transposed_kernel(weight)), exact_images.grad, upstream, weight, 9 * outputs
    )
    terms = count * height * width
    assert_close(weight_gradient(images, upstream), exact_weight.grad, images, upstream, terms)


def test_rounding_is_that_of_float32() -> None:
    """1.0e-6 of the root mean square; a direct convolution has 0.6e-6, the usual points of interpolation 2.4e-6."""
    images, weight = normal(4, 128, 16, 16), normal(128, 128, 3, 3, seed=1)
    exact = F.conv2d(images.double(), weight.double(), padding=1)
    assert relative_error(convolution(images, transformed_kernel(weight)), exact) < 1.5e-6


def test_an_image_does_not_depend_on_the_others_but_by_rounding() -> None:
    images, kernel = normal(9, WIDE, 8, 8), transformed_kernel(normal(WIDE, WIDE, 3, 3, seed=1))
    together = convolution(images, kernel)
    for image, output in zip(images.split(1), together.split(1), strict=True):
        torch.testing.assert_close(convolution(image, kernel), output, atol=1e-4, rtol=1e-5)


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was computed by tiles since the fixture was made."""
    done: list[str] = []
    for name in ("convolution", "weight_gradient"):
        function = getattr(winograd, name)

        def counted(*arguments: Any, function: Callable[..., Tensor] = function, name: str = name) -> Tensor:
            done.append(name)
            return function(*arguments)

        monkeypatch.setattr(winograd, name, counted)
    # The decision depends on the number of threads.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return done


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, WIDE, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDE, 2 * WIDE, 3, padding=1), nn.SiLU(),
        nn.Conv2d(2 * WIDE, 2 * WIDE, 3, padding=1, bias=False), nn.SiLU(), nn.Conv2d(2 * WIDE, WIDE, 3, stride=2),
        nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip


def gradients(net: nn.Module, images: Tensor) -> list[Tensor]:
    here = images.clone().requires_grad_()
    loss = net(here).logsumexp(1).sum()
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, (here, *weights))]


def test_a_step_in_the_context_has_the_same_gradients(tiled: list[str]) -> None:
    net, images = network(), torch.rand(16, 3, 16, 16)
    expected = gradients(net, images)
    assert not tiled
    with WinogradConvolutions():
        found = gradients(net, images)
    assert tiled == ["convolution"] * 2 + ["convolution", "weight_gradient"] * 2
    for value, exact in zip(found, expected, strict=True):
        assert relative_error(value, exact.double()) < 2e-5
    assert all(
        torch.equal(value, exact) for value, exact in zip(gradients(net, images), expected, strict=True)
    )


def test_a_gradient_that_is_differentiated_is_that_of_direct_convolutions(tiled: list[str]) -> None:
    net, images = network(), torch.rand(16, 3, 16, 16)

    def penalty() -> list[Tensor]:
        here = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(here).logsumexp(1).sum(), here, create_graph=True)
        # The last bias has no part in it.
        return list(torch.autograd.grad(gradient.square().sum(), list(net.parameters())[:-1]))

    expected = penalty()
    with WinogradConvolutions():
        found = penalty()
    assert "convolution" in tiled
    for value, exact in zip(found, expected, strict=True):
        assert relative_error(value, exact.double()) < 1e-4


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(WIDE, WIDE, 3, padding=1, stride=2),
        nn.Conv2d(WIDE, WIDE, 3, padding=2),
        nn.Conv2d(WIDE, WIDE, 3, padding=1, dilation=2),
        nn.Conv2d(WIDE, 2 * WIDE, 3, padding=1, groups=2),
        nn.Conv2d(WIDE, WIDE, 3, padding="same"),
        nn.Conv2d(WIDE, WIDE, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(WIDE, WIDE, 1),
        nn.Conv2d(WIDE, 32, 3, padding=1),
        nn.Conv2d(WIDE, WIDE, 3, padding=1).double(),
        nn.Conv2d(WIDE, WIDE, 3, padding=1).bfloat16(),
    ],
    ids=repr,
)
def test_every_other_convolution_is_left_as_it_is(tiled: list[str], conv: nn.Conv2d) -> None:
    images = normal(16, WIDE, 16, 16).to(conv.weight.dtype)
    expected = conv(images)
    with WinogradConvolutions():
        found = conv(images)
    assert torch.equal(found, expected) and not tiled


def test_one_image_without_a_batch_is_left_as_it_is(tiled: list[str]) -> None:
    conv, image = nn.Conv2d(WIDE, WIDE, 3, padding=1), normal(WIDE, 32, 32)
    expected = conv(image)
    with WinogradConvolutions():
        assert torch.equal(conv(image), expected) and not tiled


def test_a_convolution_under_autocast_is_left_as_it_is(tiled: list[str]) -> None:
    conv = nn.Conv2d(WIDE, WIDE, 3, padding=1)
    images = normal(16, WIDE, 16, 16)
    with torch.no_grad(), WinogradConvolutions(), torch.autocast("cpu", torch.bfloat16):
        assert conv(images).dtype == FixedConvolution(conv)(images).dtype == torch.bfloat16
    assert not tiled


def test_the_context_may_be_entered_again_and_ends_with_an_error(tiled: list[str]) -> None:
    images, context = normal(16, WIDE, 16, 16), WinogradConvolutions()
    conv = nn.Conv2d(WIDE, WIDE, 3, padding=1)
    for count in (1, 2):
        with context:
            conv(images)
        assert tiled == ["convolution"] * count
        with pytest.raises(RuntimeError, match="channels"), context:
            conv(images[:, 1:])
        conv(images)
        assert tiled == ["convolution"] * count


def test_wider_convolutions_and_larger_batches_pay_and_small_ones_do_not(tiled: list[str]) -> None:
    weights = [torch.empty(channels, channels, 3, 3) for channels in (128, 256, 512)]
    for weight in weights:
        maps = [torch.empty(count, weight.shape[1], 16, 16) for count in (1, 4, 16, 64)]
        for transformed in (True, False):
            found = [pays(images, weight, transformed=transformed) for images in maps]
            assert all(later >= earlier for earlier, later in pairwise(found)) and found[-1]
        assert pays(maps[2], weight, transformed=True) >= pays(maps[2], weight, transformed=False)
    # A map of 5x5 takes four tiles of 4x4; one of 80x80 leaves the cache.
    for side in (5, 80):
        assert not pays(torch.empty(64, 128, side, side), weights[0], transformed=True)
    # With 64 channels and few images the weight gradient gains, and the others do not.
    images, weight = torch.empty(8, 64, 16, 16), torch.empty(64, 64, 3, 3)
    assert not pays(images, weight, transformed=False)
    assert pays(images, weight, transformed=False, direct=winograd._DIRECT_WEIGHT_GRADIENT)


def test_a_fixed_convolution_replaces_a_convolution_of_any_batch(tiled: list[str]) -> None:
    conv = nn.Conv2d(2 * WIDE, WIDE, 3, padding=1).requires_grad_(False)
    fixed = FixedConvolution(conv)
    assert not list(fixed.parameters())
    for count in (1, 16):
        images = normal(count, 2 * WIDE, 4, 4)
        for value, exact in zip(gradients(fixed, images), gradients(conv, images), strict=True):
            assert relative_error(value, exact.double()) < 1e-5
    assert len(tiled) == 2


def test_only_networks_with_a_wide_convolution_have_one() -> None:
    assert has_wide_convolutions(network())
    for narrow in (
        nn.Conv2d(3, WIDE, 3, padding=1),
        nn.Conv2d(WIDE, WIDE, 3),
        nn.Conv2d(WIDE, WIDE, 3, padding="same"),
        nn.Conv2d(WIDE, WIDE, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(WIDE, WIDE, 3, padding=1).double(),
        nn.ConvTranspose2d(WIDE, WIDE, 3, padding=1),
    ):
        assert not has_wide_convolutions(narrow)
