"""The plain loop of the benchmark and the library walk the same chain; the script runs at its smallest size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import generation_speed
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.fast_copy import fast_copy
from trilemma.networks.small_resnet import SmallResNet


def test_without_noise_the_plain_loop_and_ours_are_the_same_chain(monkeypatch):
    monkeypatch.setattr(generation_speed, "NOISE_STD", 0.0)
    torch.manual_seed(0)
    clf = Classifier(SmallResNet(5, width=4).eval(), 5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    labels, starts = torch.arange(250) % 5, torch.rand(250, 3, 8, 8)
    plain = generation_speed.plain_loop(clf, starts, labels, 5)
    assert (plain - starts).abs().max() > 1e-3
    copies: list[Classifier] = []

    def recorded(*given: Any, **options: Any) -> Classifier:
        copies.append(fast_copy(*given, **options))
        return copies[-1]

    monkeypatch.setattr("trilemma.classifier.fast_copy.fast_copy", recorded)
    for other in (generation_speed.ours, generation_speed.without_copy):
        assert torch.allclose(other(clf, starts, labels, 5), plain, atol=1e-4)
    assert len(copies) == 1
    assert copies[0] is not clf


@pytest.mark.slow
def test_the_script_runs(tmp_path, monkeypatch, finished_run):
    results = tmp_path / "speed.json"
    argv = ["speed", "--toy", "--images", "20", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", [*argv, "--run", str(finished_run), "--judge", str(finished_run)])
    generation_speed.main()
    rows = json.loads(results.read_text())["rows"]
    assert len(rows) == 3
    assert all(row["ratio"]["plain loop"] == 1 for row in rows.values())
    quality = [row["quality"] for row in rows.values() if "quality" in row]
    assert [list(one)[:2] for one in quality] == [["start", "plain loop"]]
    assert "ours, bf16, with stopping" in quality[0]
    assert "| PreActResNet-18, 32x32 | 2 |" in results.with_suffix(".md").read_text()
