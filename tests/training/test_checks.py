"""What makes a run fail before its first step is said by ``train`` before it writes, and by ``validate``, alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.support import TREE, tiny
from torch import nn

from trilemma.config.recipe import build_config
from trilemma.errors import ConfigError, UserError
from trilemma.methods.standard import Standard
from trilemma.training.build import build_data
from trilemma.training.checks import check_run
from trilemma.training.devices import check_devices
from trilemma.training.estimate import estimate
from trilemma.training.train import train

OUTSIDE = {"method": {"name": "dat", "outside": "nowhere"}, "sampler": {"steps": 1}}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "batch beyond the images": ({"training": {"batch_size": 500}}, "batch size 500 is larger than the 300"),
    "batch beyond the processes": ({"devices": 3}, "batch size 32 cannot be shared equally by 3 processes"),
    "images that are not there": (OUTSIDE, "nowhere"),
    "single values under BatchNorm": (
        {"training": {"batch_size": 1}, "data": {"name": "digits", "size": 2, "train_images": 300}},
        "training.batch_size: BatchNorm needs more than one value per channel",
    ),
    "a method that fails": ({}, "method 'standard': terms returned int; it returns a Step"),
}


@pytest.mark.parametrize("case", CASES)
def test_validate_and_train_say_the_same(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "a method that fails":
        monkeypatch.setattr(Standard, "terms", lambda *_: 3)
    sections, message = CASES[case]
    training = {**TREE["training"], **sections.get("training", {})}
    config = build_config({**TREE, "method": "standard", **sections, "training": training})
    with pytest.raises(UserError, match=re.escape(message)) as error:
        train(config, out=tmp_path / "run", progress=False, device="cpu")
    assert not (tmp_path / "run").exists()
    failed = [check for check in estimate(config, "cpu")["checks"] if not check["ok"]]
    assert [check["message"] for check in failed] == [str(error.value)]


def test_the_check_leaves_no_trace_in_the_random_state() -> None:
    config = tiny("eb-jdat", sampler={"steps": 2, "buffer_size": 50})
    data, before = build_data(config), torch.get_rng_state()
    check_run(config, data)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_cannot_take_the_images_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(*_: object, **__: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(7, 10))

    monkeypatch.setattr("trilemma.networks.small_resnet.SmallResNet", narrow)
    with pytest.raises(ConfigError, match=r"network 'small-resnet': .*1, 8, 8"):
        train(tiny("standard"), out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("device", "count", "devices", "message"),
    [
        ("tpu", 0, 1, "device tpu: unknown"),
        ("cpu:x", 0, 1, "device cpu:x: unknown"),
        ("cuda", 0, 1, "device cuda: not available, this machine has only the CPU"),
        ("cuda:2", 2, 1, "device cuda:2: not available, this machine has cuda:0 to cuda:1"),
        ("cuda", 2, 3, "devices: 3 processes need as many GPUs"),
        ("cuda:1", 2, 2, "devices: 2 processes need as many GPUs, but cuda:1 is 1"),
    ],
)
def test_a_device_that_is_not_there(
    device: str, count: int, devices: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_devices(tiny("standard", devices=devices), device)


def test_every_cpu_is_the_cpu(tmp_path: Path) -> None:
    assert check_devices(tiny("standard", devices=4), "cpu:0") == "cpu"
    run = train(tiny("standard", {"epochs": 1}), out=tmp_path / "run", progress=False, device="cpu:0")
    assert run.classifier.device.type == "cpu"
