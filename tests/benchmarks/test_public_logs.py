"""The benchmark on public logs reads both formats, and sorts runs by what happened."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("public_logs", BENCHMARKS / "public_logs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "public_logs", module)
    spec.loader.exec_module(module)
    return module


def fast(pgd: list[float], fgsm: list[float]) -> str:
    blocks = [
        f"============ Epoch {epoch} ============\nTraining loss: 2.1\nModel - Validation accuracy: 0.8\n"
        f"Model - FGSM accuracy: {two}\nModel - PGD accuracy: {one}\nWA Model - Validation accuracy: 0.7\n"
        f"WA Model - FGSM accuracy: 0.5\nWA Model - PGD accuracy: 0.4\n"
        for epoch, (one, two) in enumerate(zip(pgd, fgsm, strict=True))
    ]
    return "Method: x\n" + "\n".join(blocks) + "  pgd_10_acc: 0.5370\n  autoattack_acc: 0.4000\n"


def test_the_first_format_has_weights_and_their_average(script) -> None:
    log = script.read_fast("a", fast([0.2, 0.3], [0.25, 0.35]), "(?:Model - )?")
    assert log.rows == [
        {"epoch": 0.0, "clean": 0.8, "fgsm": 0.25, "pgd": 0.2},
        {"epoch": 1.0, "clean": 0.8, "fgsm": 0.35, "pgd": 0.3},
    ]
    assert log.gap_to_autoattack == pytest.approx(0.137)
    assert script.read_fast("a", fast([0.2], [0.3]), "WA Model - ").pgd == [0.4]
    bare = fast([0.2], [0.3]).replace("WA Model - ", "x ").replace("Model - ", "")
    assert script.read_fast("a", bare).pgd == [0.2]


def test_the_second_format_ends_at_the_first_repeated_epoch(script) -> None:
    head = "[2020/02/01 11:04:30] - Epoch \t Train Time \t Test Robust Acc\n"
    times, losses = "267.4 \t 51.0 \t 0.1 \t 4.1 \t 0.05", "4.3 \t 0.04 \t 3.9"
    lines = [
        f"[2020/02/01 11:09:48] - {epoch} \t {times} \t {losses} \t 0.{clean} \t 4.0 \t 0.{robust}"
        for epoch, clean, robust in ((0, 30, 20), (1, 40, 25), (1, 41, 26), (2, 42, 27))
    ]
    log = script.read_robust("a", head + "\n".join(lines))
    assert [(row["epoch"], row["clean"], row["pgd"]) for row in log.rows] == [(0, 0.3, 0.2), (1, 0.4, 0.25)]


def rows(pgd: list[float], gap: float = 0.05) -> list[dict[str, float]]:
    return [{"epoch": place, "pgd": value, "fgsm": value + gap} for place, value in enumerate(pgd)]


@pytest.mark.parametrize(
    ("pgd", "gap", "kind"),
    [
        ([0.4] * 20, 0.05, "healthy"), ([0.4] * 20, 0.31, "collapsed"), ([0.4] * 12 + [0.1] * 8, 0.05, "faded"),
        ([0.4] * 12 + [0.36] * 10, 0.05, "overfit"), ([0.4] * 12 + [0.38] * 10, 0.05, "healthy"),
    ],
)  # fmt: skip
def test_what_happened_in_a_run(script, pgd: list[float], gap: float, kind: str) -> None:
    assert script.Log("a", rows(pgd, gap)).kind == kind


def test_drawn_logs_have_the_accuracies_on_average_and_nested_images(script) -> None:
    log = script.Log("a", rows([0.3] * 400, gap=0.1))
    drawn = log.drawn(50, np.random.default_rng(0))
    assert np.mean([row["pgd"] for row in drawn]) == pytest.approx(0.3, abs=0.01)
    assert np.std([row["pgd"] for row in drawn]) == pytest.approx((0.3 * 0.7 / 50) ** 0.5, rel=0.1)
    assert all(row["fgsm"] >= row["pgd"] for row in drawn)


def test_counts_of_a_source(script) -> None:
    collapse = rows([0.3] * 12, gap=0.05) + [{"epoch": 12 + i, "pgd": 0.02, "fgsm": 0.6} for i in range(8)]
    found = script.measure([script.Log("a", collapse, 0.2), script.Log("b", rows([0.4] * 20), 0.05)])
    assert found["collapsed"] == {"runs": 1, "accuracy-gap": 1, "robust-overfitting": 0}
    assert found["healthy"] == {"runs": 1, "accuracy-gap": 0, "robust-overfitting": 0}
    assert found["lags"]["1"] == {"heard": 1, "mean": 0, "max": 0}
    assert found["masked"] == {"runs": 2, "above": 1, "next": 0.05}
