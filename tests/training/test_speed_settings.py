"""What a run on the CPU does for speed: the memory format of the network, and freed memory that stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import trilemma
from trilemma.training.loop import Loop

from .support import tiny


@pytest.mark.parametrize(
    ("network", "memory_format"),
    [
        ({"name": "small-cnn", "width": 8}, "contiguous"),
        ({"name": "small-resnet", "width": 8, "norm": "group"}, "contiguous"),
        ({"name": "small-resnet", "width": 8}, "channels-last"),
    ],
)
def test_the_network_is_channels_last_where_that_is_faster(
    tmp_path: Path, network: dict[str, Any], memory_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = []
    monkeypatch.setattr(Loop, "_one_step", lambda loop, batch: None)
    monkeypatch.setattr(Loop, "train", lambda loop: formats.append(_format(loop)))
    with pytest.raises(trilemma.errors.UserError):
        # Nothing was trained.
        trilemma.train(tiny("standard", network=network), out=tmp_path / "run", progress=False)
    assert formats == [memory_format]


def _format(loop: Loop) -> str:
    kernels = [weight for weight in loop.clf.parameters() if weight.dim() == 4 and weight.shape[1] > 1]
    assert all(kernel.is_contiguous() for kernel in kernels) == (loop.record.memory_format == "contiguous")
    return loop.record.memory_format


WIDE = {"name": "small-resnet", "width": 64, "depth": 8}


def test_a_wide_network_is_trained_with_winograd_convolutions_and_another_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same steps up to rounding; the run records which convolutions it has used."""
    # The choice depends on the number of threads.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    few = {"epochs": 1, "held_out_images": 20}
    runs = {}
    for name, network, training in (
        ("tiled", WIDE, {}),
        ("direct", WIDE, {"winograd": False}),
        ("lower precision", WIDE, {"precision": "bf16"}),
        ("narrow", {"name": "small-resnet", "width": 8}, {}),
    ):
        # No attack, whose signs turn rounding into whole steps.
        config = tiny("standard", few | training, network=network)
        config = config.model_copy(update={"data": config.data.model_copy(update={"train_images": 96})})
        runs[name] = trilemma.train(config, out=tmp_path / name, progress=False)
    used = {
        name: json.loads((run.path / "status.json").read_text())["convolutions"] for name, run in runs.items()
    }
    assert used == {"tiled": "winograd", "direct": "direct", "lower precision": "direct", "narrow": "direct"}
    tiled, direct = (
        torch.cat([weight.detach().flatten() for weight in trilemma.load(runs[name].path).parameters()])
        for name in ("tiled", "direct")
    )
    assert 0 < float((tiled - direct).norm() / direct.norm()) < 1e-3


def test_freed_memory_is_kept_during_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    @contextmanager
    def context(device: torch.device) -> Iterator[None]:
        assert device.type == "cpu"
        kept.append("begin")
        yield
        kept.append("end")

    one_step = Loop._one_step

    def step(loop: Loop, batch: Any) -> None:
        one_step(loop, batch)
        kept.append("step")

    monkeypatch.setattr("trilemma.training.train.freed_memory_kept", context)
    monkeypatch.setattr(Loop, "_one_step", step)
    run = trilemma.train(tiny("standard"), out=tmp_path / "run", progress=False)
    assert json.loads((run.path / "status.json").read_text())["step"] == kept.count("step")
    assert kept[0] == "begin" and kept[-1] == "end" and kept.count("begin") == 1
