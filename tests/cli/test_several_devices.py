"""``--devices``: several processes under one command, one writer, and mistakes of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trilemma.runs.run_directory import RunDirectory


def test_evaluate_and_generate_have_the_results_of_one_process(
    trilemma: Callable[..., Any], run_folder: Path
) -> None:
    rows, samples = [], []
    for devices in (1, 2):
        options = ("--devices", devices, "--device", "cpu", "--quiet", "--json")
        result = trilemma(
            "evaluate", run_folder, "--protocol", "pgd-20", "--images", 40, "--no-lint", *options
        )
        assert result.exit_code == 0, result.output
        assert (RunDirectory(run_folder).path / "evaluation" / "pgd-20.json").is_file()
        rows.append(json.loads(result.stdout)["pgd-20"])
        result = trilemma("generate", run_folder, "--per-class", 2, "--steps", 3, *options)
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        with np.load(run_folder / "samples" / f"{record['name']}.npz") as archive:
            samples.append(dict(archive))
    assert {**rows[0], "seconds": 0} == {**rows[1], "seconds": 0}
    assert all(np.array_equal(samples[0][name], samples[1][name]) for name in ("starts", "samples", "labels"))


def test_mistakes_are_one_line(mistake: Callable[..., str], run_folder: Path) -> None:
    command = ("evaluate", run_folder, "--protocol", "clean", "--device", "cpu")
    for value in (0, "two"):
        assert "'--devices'" in mistake(*command, "--devices", value)
    assert (
        mistake(*command, "--images", 7, "--devices", 8) == "devices: 8 processes for 7 images; use at most 7"
    )
    many = mistake("generate", run_folder, "--per-class", 1, "--steps", 1, "--device", "cpu", "--devices", 11)
    assert many == "devices: 11 processes for 10 samples; use at most 10"
    assert "not used with --samples" in mistake("evaluate", run_folder, "--samples", "x.npz", "--devices", 2)
    assert "devices" in mistake("train", "digits/standard", "devices=0")
