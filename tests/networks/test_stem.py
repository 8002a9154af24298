"""Convolutions that read images: PyTorch's own results and gradients, computed in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trilemma.networks.stem import StemConvolution, fits


def pair(channels: int, **options: Any) -> tuple[nn.Conv2d, StemConvolution]:
    """PyTorch's convolution and ours with the same weights, in float64."""
    torch.manual_seed(0)
    plain, ours = nn.Conv2d(channels, 6, **options).double(), StemConvolution(channels, 6, **options).double()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def gradients(conv: nn.Module, images: Tensor) -> list[Tensor]:
    """The result, its gradients, and those of a penalty on the input gradient."""
    here = images.clone().requires_grad_()
    output = conv(here)
    leaves = [here, *conv.parameters()]
    first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), leaves, allow_unused=True)
    return [output.detach(), *(each.detach() for each in (*first, *second) if each is not None)]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 8), (2, 5, 11), (4, 7, 7)])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": (5, 2), "stride": (1, 3), "padding": (2, 0)},
    ],
)
def test_results_and_gradients_of_every_order_are_those_of_pytorch(
    shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    plain, ours = pair(shape[0], **options)
    assert fits(ours)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1)).double()
    for found, expected in zip(gradients(ours, images), gradients(plain, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(ours(images), plain(images))


@pytest.mark.parametrize(
    "options",
    [{"padding": "same"}, {"padding_mode": "reflect", "padding": 1}, {"dilation": 2}],
)
def test_any_other_convolution_is_that_of_pytorch(options: dict[str, Any]) -> None:
    plain, ours = pair(3, kernel_size=3, **options)
    assert not fits(ours)
    images = torch.rand(2, 3, 9, 8).double()
    assert torch.equal(ours(images), plain(images))


def test_one_image_without_a_batch_and_lower_precision_are_taken() -> None:
    plain, ours = pair(3, kernel_size=3)
    plain.float()
    ours.float()
    image = torch.rand(3, 8, 8, requires_grad=True)
    assert torch.equal(ours(image), plain(image))
    found = []
    for conv in (ours, plain):
        here = image.detach()[None].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = conv(here)
        assert output.dtype == torch.bfloat16
        found.append(torch.autograd.grad(output.float().square().sum(), [here, *conv.parameters()]))
    for ours_, plains in zip(*found, strict=True):
        assert ours_.dtype == plains.dtype
        torch.testing.assert_close(ours_, plains, rtol=0.05, atol=0.05 * float(plains.abs().max()))
