"""The scripts for an accelerator run on a CPU too, at toy size, so that they cannot rot."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
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
    # The reference program of AutoAttack has the name of a script.
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
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


def test_the_programme_makes_a_row_of_each_kind_once_and_stops_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programme = script("programme")
    monkeypatch.setattr(programme.METHODS, "names", lambda: ["pgd-at"])
    arguments = ["--toy", "--out", str(tmp_path)]
    assert programme.main([*arguments, "--minutes", "0.001"]) == 0
    assert "0 of 16 rows" in capsys.readouterr().out
    assert programme.main([*arguments, "--minutes", "9"]) == 0
    assert "16 of 16 rows; 0 failed" in capsys.readouterr().out
    rows = {
        f"{file.parent.name}, {file.stem}": json.loads(file.read_text()) for file in tmp_path.glob("*/*.json")
    }
    assert len(rows) == 16 and all(row["device"].endswith(platform.python_version()) for row in rows.values())
    assert rows["agreement, autoattack"]["differ"] == rows["agreement, pgd-at"]["loss"] == 0
    run = rows["speedrun, n-fgsm, 15 epochs"]
    assert 0 <= run["autoattack-standard"] <= run["clean"] <= 1 and run["minutes"] > 0
    assert rows["methods, pgd-at"]["samples: distance"] > 0
    page = (tmp_path / "programme.md").read_text()
    assert page.count("rows.") == len(programme.PARTS)
    # What is there is not made again, and a row that fails does not keep the others from being made.
    (tmp_path / "ceilings" / "copy.json").unlink()
    (tmp_path / "ceilings" / "bf16.json").unlink()
    monkeypatch.setattr(programme, "matrix_product", lambda *_: 1 / 0)
    assert programme.main([*arguments, "--minutes", "9"]) == 1
    assert "15 of 16 rows; 1 failed" in capsys.readouterr().out
    assert (tmp_path / "ceilings" / "copy.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--minutes", "0", "--toy"], "must be above 0"), (["--device", "cpu"], "--root is missing")],
)
def test_a_wrong_argument_of_the_programme_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script("programme").main(["--out", str(tmp_path), *arguments])
    assert ended.value.code == 2 and words in capsys.readouterr().err
