"""A missing compiler is found before a run begins, and by validate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import trilemma
from trilemma.config.recipe import load_config
from trilemma.data.sources import load_splits
from trilemma.errors import ConfigError
from trilemma.training.build import build_classifier, synchronised
from trilemma.training.devices import check_compiler, check_devices
from trilemma.training.estimate import estimate
from trilemma.training.processes import nodes


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(function: Any) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand a page of advice")

        return fail

    monkeypatch.setattr(torch, "compile", compile)


MESSAGE = (
    r"training.compile: torch.compile does not work on this machine \(RuntimeError: InvalidCxxCompiler: "
)


def test_train_refuses_before_anything_is_written(
    no_compiler: None, shared_cache: None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=MESSAGE) as caught:
        trilemma.train("digits/pgd-at", {"training.compile": True}, out=tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value) and "g++" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_validate_has_a_check_of_it(no_compiler: None, shared_cache: None) -> None:
    config = load_config("digits/pgd-at", {"training.compile": True})
    checks = {check["name"]: check for check in estimate(config)["checks"]}
    assert not checks["compiler"]["ok"]
    assert "No working C++ compiler" in checks["compiler"]["message"]
    assert "compiler" not in {check["name"] for check in estimate(load_config("digits/pgd-at"))["checks"]}


def test_without_compile_nothing_is_compiled(no_compiler: None) -> None:
    check_compiler(load_config("digits/pgd-at"), "cpu")


def test_batch_norm_is_synchronised_on_gpus_only(shared_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("digits/pgd-at", {"training.sync_bn": True, "devices": 2, "network.width": 4})
    with pytest.raises(ConfigError, match=r"^training.sync_bn: .* on GPUs only; set training.sync_bn=false"):
        check_devices(config, "cpu")
    # one process has the whole batch
    assert check_devices(config.model_copy(update={"devices": 1}), "cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_devices(config, "cuda") == "cuda"


def test_a_synchronised_network_has_the_same_weights_and_frozen_layers(shared_cache: None) -> None:
    config = load_config("digits/pgd-at", {"training.freeze": 2, "network.width": 4})
    clf = build_classifier(config, load_splits("digits").train)
    weights = {name: value.clone() for name, value in clf.state_dict().items()}
    frozen = {name for name, layer in clf.train().network.named_modules() if not layer.training}
    clf.network = synchronised(clf.network, config).train()
    norms = [layer for layer in clf.network.modules() if isinstance(layer, torch.nn.SyncBatchNorm)]
    assert norms and all(torch.equal(value, weights[name]) for name, value in clf.state_dict().items())
    assert frozen == {name for name, layer in clf.network.named_modules() if not layer.training} != set()


def test_a_launcher_that_started_another_number_of_processes_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert nodes(4) == 2
    with pytest.raises(
        ConfigError, match=r"^devices: 1, but the launcher has started 4 processes; set devices=4$"
    ):
        nodes(1)
