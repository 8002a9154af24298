"""A missing compiler is found before a run begins, and by validate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import trilemma
from trilemma.config.recipe import load_config
from trilemma.errors import ConfigError
from trilemma.training.devices import check_compiler
from trilemma.training.estimate import estimate


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
