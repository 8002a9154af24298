"""Numbers that no machine holds, networks that none builds, and file names that are not UTF-8, on the command line."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trilemma as package
from trilemma.classifier.classifier import Classifier

LATIN = os.fsdecode(b"r\xe9sum\xe9")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--per-class", 10**8], "images need .* of memory, and"),
        (["--per-class", 10**30], "per_class=1000000000000000000000000000000; must be at most"),
        (["--steps", 10**10], "steps=10000000000; must be at most"),
        (["--step-size", "1e-400"], "too small"),
        (["--noise-std", "1e999"], "too large"),
        (["--clamp", "nan"], "'nan' is not a number"),
        (["--diversity", "8/0"], "'8/0' is not a number"),
        (["--seed", 2**64], "less than or equal to"),
        (["--seed", "-1"], "greater than or equal to 0"),
    ],
)
def test_generate_refuses_impossible_numbers(
    mistake: Callable[..., str], untrained_run: Path, tmp_path: Path, arguments: list[Any], words: str
) -> None:
    started = time.process_time()
    line = mistake("generate", untrained_run, *arguments, "--out", tmp_path / "out", "--quiet")
    assert time.process_time() - started < 2
    assert re.search(words, line), line


def test_a_step_may_be_a_fraction(trilemma: Callable[..., Any], untrained_run: Path, tmp_path: Path) -> None:
    common = ("generate", untrained_run, "--per-class", 1, "--steps", 1, "--json", "--quiet")
    for number, folder in (("8/256", "a"), ("0.03125", "b")):
        result = trilemma(*common, "--step-size", number, "--out", tmp_path / folder)
        assert result.exit_code == 0, result.output
    first, second = (next((tmp_path / name).glob("*.npz")) for name in "ab")
    with np.load(first) as one, np.load(second) as other:
        assert np.array_equal(one["samples"], other["samples"])


@pytest.mark.parametrize("option", ["network.width=1000000", "network.depth=6000002"])
@pytest.mark.parametrize("command", ["train", "validate"])
def test_a_network_that_no_machine_holds_is_not_built(
    trilemma: Callable[..., Any], tmp_path: Path, command: str, option: str
) -> None:
    out = ("--out", tmp_path / "run") if command == "train" else ()
    result = trilemma(command, "digits/standard", option, *out)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "network 'small-resnet': has more than" in result.output
    assert not (tmp_path / "run").exists()


def test_a_buffer_that_no_machine_holds_is_not_made(mistake: Callable[..., str], tmp_path: Path) -> None:
    line = mistake("train", "digits/eb-jdat", "sampler.buffer_size=1000000000000", "--out", tmp_path / "run")
    assert line.startswith("sampler.buffer_size: 1,000,000,000,000 images need")
    assert not (tmp_path / "run").exists()


def test_every_command_says_that_a_classifier_has_diverged(
    mistake: Callable[..., str], run_folder: Path, tmp_path: Path
) -> None:
    clf = Classifier.load(run_folder / "checkpoints" / "best" / "classifier.safetensors")
    with torch.no_grad():
        next(clf.network.parameters()).fill_(float("nan"))
    clf.save(run_folder / "checkpoints" / "best" / "classifier.safetensors")
    image = tmp_path / "digit.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    for command in (
        ("evaluate", run_folder, "--protocol", "clean"), ("predict", run_folder, image), ("score", run_folder, image),
        ("generate", run_folder), ("diagnose", run_folder), ("lint", run_folder),
        ("export", run_folder, "--state-dict", "--out", tmp_path / "x.pt"),
        ("counterfactual", run_folder, image, "--target", "3", "--out", tmp_path / "c"),
        ("push", run_folder, "a/b", "--out", tmp_path / "p"),
    ):  # fmt: skip
        assert "this classifier has diverged: " in mistake(*command), command


def test_a_network_of_ones_own_has_diverged_too() -> None:
    last = nn.Linear(64, 10)
    with torch.no_grad():
        last.weight.fill_(float("inf"))
    network = nn.Sequential(nn.Flatten(), last)
    with pytest.raises(package.errors.CheckpointError, match=r"this classifier has diverged: 1\.weight"):
        package.load(model=network, classes=10)


def test_file_names_that_are_not_utf_8_are_read_shown_and_written(
    trilemma: Callable[..., Any], untrained_run: Path, tmp_path: Path
) -> None:
    run, image = tmp_path / LATIN, tmp_path / f"{LATIN}.png"
    try:
        shutil.copytree(untrained_run, run)
    except OSError:
        pytest.skip("this file system has no such names")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    shown = LATIN.encode(errors="backslashreplace").decode()
    for command in (
        ("predict", run, image), ("score", run, image), ("evaluate", run, "--protocol", "clean", "--images", 5),
        ("export", run, "--state-dict", "--out", tmp_path / f"{LATIN}.safetensors"),
        ("predict", tmp_path / f"{LATIN}.safetensors", image), ("report", run),
        ("compare", run, "--out", f"{LATIN}.md"),
    ):  # fmt: skip
        result = trilemma(*command)
        assert result.exit_code == 0 and result.exception is None, (command, result.output)
    assert shown in (run / "report.html").read_text(encoding="utf-8")
    assert Path(f"{LATIN}.md").is_file()
