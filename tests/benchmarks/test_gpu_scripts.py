"""The scripts for an accelerator run on a CPU too, at toy size, so that they cannot rot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from trilemma.config.registry import METHODS

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import what they share from their own folder."""
    monkeypatch.syspath_prepend(FOLDER)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cpu_agrees_with_itself() -> None:
    rows = script("agreement").main(["--device", "cpu", "--images", "8"])
    assert [row["method"] for row in rows] == METHODS.names()
    assert all(row["loss"] == 0 and row["gradient"] == 0 for row in rows)


def test_speed_is_measured_against_plain_float32(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--device",
        "cpu",
        "--methods",
        "pgd-at",
        "eb-jdat",
        "--network",
        "small-resnet",
        "--batch",
        "16",
    ]
    rows = script("throughput").main([*arguments, "--steps", "1", "--settings", "fp32", "bf16"])
    assert [row["ratio"] for row in rows if row["setting"] == "fp32"] == [1.0, 1.0]
    assert all(row["images"] > 0 and row["tflops"] > 0 for row in rows)
    assert "| eb-jdat | bf16 |" in capsys.readouterr().out


def test_autoattack_is_judged_at_every_precision(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ["--device", "cpu", "--run", str(finished_run), "--images", "60", "--radius", "0.001"]
    plain, low = script("autoattack").main(
        [*what, "--attacks", "apgd-ce", "--settings", "fp32", "bf16, then fp32"]
    )
    assert plain["robust"] > 0 == plain["differ"] and low["differ"] <= 1
    assert low["passes"] > plain["passes"] > 0, "what low precision left standing is attacked again"
    assert "| bf16, then fp32 |" in capsys.readouterr().out
