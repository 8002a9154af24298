"""The baselines of the throughput benchmark take the library's steps; every method costs what it states."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.release_steps import STEPS, Release, class_gaussians
from benchmarks.throughput import Parts, Setting, configuration, counted, disagreement, passes_alone

from benchmarks import throughput
from trilemma.config.registry import METHODS
from trilemma.data.sources import load_splits
from trilemma.data.statistics import ClassGaussian
from trilemma.training.estimate import forward_passes


def few_images(method: str, network: str = "small-cnn") -> Setting:
    config = configuration(method, network, None, 8)
    return Setting.of(config, load_splits("digits")).of_few()


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_costs_the_forward_passes_that_it_states(method: str) -> None:
    setting = few_images(method, "small-resnet")
    if setting.state.starts is not None:
        # Class Gaussians are drawn ahead of use.
        setting.state.starts(torch.arange(10))
    # No gradient of the clean images is taken in the first layer; second derivatives multiply more there.
    counted_passes = counted(setting.step, setting)
    assert counted_passes == pytest.approx(forward_passes(setting.config), abs=0.25)
    if not setting.config.method.double_backwards:
        assert counted(passes_alone(setting), setting) == pytest.approx(counted_passes, abs=0.15)


@pytest.mark.parametrize("method", sorted(STEPS))
def test_a_step_in_the_form_of_a_release_is_the_step_of_the_library(method: str) -> None:
    assert disagreement(few_images(method)) < 1e-9


def test_a_step_of_other_mathematics_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_clean_term(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
        STEPS["pgd-at"](release, images, labels, data)

    setting = few_images("jeat")
    monkeypatch.setitem(STEPS, "jeat", without_the_clean_term)
    with pytest.raises(ArithmeticError, match="jeat: the weights differ by"):
        disagreement(setting)


def test_class_gaussians_of_the_baseline_have_the_law_of_the_starts_of_the_library() -> None:
    data = load_splits("digits").train
    drawn = ClassGaussian(data)
    images = data.float_images((data.labels == 3).nonzero().squeeze(1)).flatten(1).double()
    law = class_gaussians(data)[3]
    covariance = torch.cov(images.t(), correction=0) + drawn.jitter * torch.eye(64)
    assert torch.allclose(law.covariance_matrix.double(), covariance, atol=1e-6)
    assert torch.allclose(law.mean.double(), images.mean(0), atol=1e-6)


def test_parts_are_timed_without_the_parts_inside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.process_time", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    parts = Parts()
    sampler = parts.of("sampler", lambda: spend(3.0))

    def points() -> None:
        spend(2.0)
        sampler()
        spend(5.0)

    parts.of("attack", points)()
    spend(10.0)
    assert parts.seconds == {"attack": 7.0, "sampler": 3.0}
    assert parts.shares() == {"attack": 0.7, "sampler": 0.3}


def test_the_script_runs(tmp_path: Path) -> None:
    results = tmp_path / "throughput.json"
    argv = ["--toy", "--networks", "small-cnn", "--methods", "pgd-at", "eb-jdat", "standard"]
    throughput.main([*argv, "--results", str(results)])
    rows = json.loads(results.read_text())["rows"]
    assert list(rows) == ["pgd-at, small-cnn", "eb-jdat, small-cnn", "standard, small-cnn", "copy, small-cnn"]
    jdat = rows["eb-jdat, small-cnn"]
    assert jdat["stated"] == 42 and jdat["counted"] == pytest.approx(42, abs=0.5)
    assert jdat["counted_release"] > 63
    assert jdat["peak_mb"] > 0 and jdat["peak_mb_release"] > 0
    assert sum(jdat["shares"].values()) == pytest.approx(1, abs=0.01)
    assert {"data", "attack", "sampler", "loss", "update", "logging"} <= set(jdat["shares"])
    sides = [[one[side][1] for one in jdat["seconds"]] for side in ("trilemma", "release")]
    assert jdat["release_ratio"] == pytest.approx(sides[1][0] / sides[0][0], abs=1e-3)
    assert "release_ratio" not in rows["standard, small-cnn"]
    page = results.with_suffix(".md").read_text()
    assert "release at least 4.0" in page and "alone at least 0.95" in page
