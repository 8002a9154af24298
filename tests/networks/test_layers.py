from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from trilemma.errors import UserError
from trilemma.networks.layers import make_activation, make_norm
from trilemma.networks.options import ActivationName, NormName


@pytest.mark.parametrize("channels", [1, 3, 8, 10, 16, 18, 64, 160, 512, 640])
def test_group_norm_groups_divide_the_channels_and_are_never_single_where_avoidable(channels: int) -> None:
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert channels % norm.num_groups == 0
    assert channels // norm.num_groups >= min(4, channels)
    assert norm.num_groups <= 32


def test_group_norm_does_not_erase_a_one_pixel_map() -> None:
    torch.manual_seed(0)
    assert make_norm("group", 64)(torch.randn(2, 64, 1, 1)).std() > 0.5


def test_leaky_relu_has_the_slope_of_jem() -> None:
    assert make_activation("leaky_relu")(torch.tensor(-1.0)).item() == pytest.approx(-0.2)


def test_the_options_name_the_layers_that_can_be_made() -> None:
    for name in get_args(NormName):
        assert isinstance(make_norm(name, 8), nn.Module)
    for name in get_args(ActivationName):
        assert isinstance(make_activation(name), nn.Module)
    with pytest.raises(UserError, match=f"Norms: {', '.join(get_args(NormName))}$"):
        make_norm("batched", 8)
    with pytest.raises(UserError, match=f"Activations: {', '.join(get_args(ActivationName))}$"):
        make_activation("elu")


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu"])
def test_activations_leave_their_input_alone(name: str) -> None:
    values = torch.linspace(-1, 1, 5)
    make_activation(name)(values)
    assert torch.equal(values, torch.linspace(-1, 1, 5))
