"""Channels-last only where it is safe: oneDNN on AVX2 writes past its buffers for narrow convolutions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import trilemma
from trilemma.classifier.memory_format import narrow_convolution, preferred_memory_format, set_memory_format
from trilemma.runs.run_directory import RunDirectory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def convolutions(*channels: int, norm: nn.Module | None = None) -> nn.Sequential:
    """1x1 convolutions from each number of channels to the next."""
    layers: list[nn.Module] = [nn.Conv2d(a, b, 1) for a, b in pairwise(channels)]
    return nn.Sequential(*layers, *([] if norm is None else [norm]))


@pytest.mark.parametrize(
    ("network", "narrow"),
    [
        (convolutions(1, 8, 16), None),
        (convolutions(3, 8, 8), None),
        (convolutions(4, 8, 8), "0"),
        (convolutions(3, 7, 8), "1"),
        (convolutions(1, 1, 8), "1"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), None),
        (
            nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 3)), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 1))),
            "1.1",
        ),
    ],
)
def test_convolutions_of_few_channels_but_the_one_on_the_image_keep_a_cpu_from_channels_last(network, narrow):
    assert narrow_convolution(network) == narrow
    expected = torch.channels_last if narrow is None else torch.contiguous_format
    assert preferred_memory_format(network, CPU) == expected
    assert preferred_memory_format(network, CUDA) == torch.channels_last


def test_group_norm_keeps_a_cpu_from_channels_last():
    assert (
        preferred_memory_format(convolutions(3, 8, norm=nn.GroupNorm(2, 8)), CPU) == torch.contiguous_format
    )


def test_setting_a_format_changes_strides_and_no_value():
    network, images = convolutions(3, 8, 16), torch.rand(2, 3, 4, 4)
    before = network(images)
    set_memory_format(network, torch.channels_last)
    weights = [weight for weight in network.parameters() if weight.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    torch.testing.assert_close(network(images), before)


@pytest.mark.parametrize(("width", "recorded"), [(4, "contiguous"), (8, "channels-last")])
def test_a_run_records_its_format_and_says_why_it_is_not_channels_last(
    width: int, recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_cache: None
) -> None:
    quick = {"network.width": width, "training.epochs": 1, "training.held_out_images": 20}
    run = trilemma.train("digits/standard", quick, out=tmp_path / "run")
    assert RunDirectory.open(run.path).status()["memory_format"] == recorded
    weights = [weight for weight in run.classifier.network.parameters() if weight.dim() == 4]
    assert len(weights) > 3
    assert ("fewer than 8 input channels" in capsys.readouterr().err) == (width < 8)
