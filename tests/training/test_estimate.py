"""`trilemma validate`: forward passes counted by hand, sizes known from elsewhere, checks that fail softly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.training.support import tiny

from trilemma.config.recipe import load_config
from trilemma.networks.cost import count_macs, count_parameters
from trilemma.networks.create import create_network
from trilemma.training.estimate import estimate, forward_passes


@pytest.mark.parametrize(
    ("method", "sections", "passes"),
    [
        ("standard", {}, 3),
        ("pgd-at", {}, 10 * 2 + 3),
        ("pgd-at", {"regulariser": {"name": "der"}}, 10 * 2 + 3 + 3),  # and x once, with gradient
        ("n-fgsm", {}, 2 + 3),
        ("fgsm-rs", {"regulariser": {"name": "der", "reference": "start"}}, 2 + 3 + 3),
        ("free-at", {}, 3),  # of each replay: its backward is the attack's too
        ("aaer", {}, 2 + 3 + 1),  # x0 without gradient
        ("aaer", {"update": {"name": "sam"}}, 2 + 2 * (3 + 1)),
        ("trades", {}, 1 + 10 * 2 + 3 + 3),  # the clean logits of the attack, then x and x*
        ("trades", {"regulariser": {"name": "der"}}, 1 + 10 * 2 + 3 + 3),  # x is among the loss's own
        ("trades", {"regulariser": {"name": "der", "mode": "eval"}}, 1 + 10 * 2 + 3 + 3 + 6),
        ("fgsm", {"regulariser": {"name": "der", "mode": "eval"}}, 2 + 3 + 6),
        ("sada-jem", {}, 10 * 2 + 3 * 3),  # x, x^ and the un-augmented x
        ("sada-jem", {"update": {"name": "sam"}}, 10 * 2 + 2 * 3 * 3),  # terms twice at the same points
        ("trades", {"update": {"name": "awp"}}, 1 + 10 * 2 + 2 * (3 + 3)),
        ("jeat", {}, 10 * 2 + 20 * 2 + 2 * 3),
        ("eb-jdat", {}, 5 * 2 + 10 * 2 + 4 * 3),  # with augmentation 42, without 39
        ("eb-jdat", {"attack": {"steps": 3}, "sampler": {"steps": 7}}, 3 * 2 + 7 * 2 + 4 * 3),
    ],
)
def test_forward_passes_are_those_counted_by_hand(method: str, sections: dict[str, Any], passes: int) -> None:
    assert forward_passes(tiny(method, **sections)) == passes


def test_replays_are_steps() -> None:
    assert estimate(tiny("free-at", {"epochs": 3}), device="cpu")["steps"] == 3 * 9 * 8


def test_the_numbers_of_a_small_run() -> None:
    config = tiny("pgd-at", {"epochs": 3})
    result = estimate(config, device="cpu")
    assert all(check["ok"] for check in result["checks"])
    network = create_network(config.network, 10, (1, 8, 8))
    assert result["parameters"] == count_parameters(network) == sum(p.numel() for p in network.parameters())
    assert result["macs"] == count_macs(network, (1, 8, 8))
    assert result["forward_passes_per_image"] == 23
    assert result["steps"] == 3 * 9
    assert result["hours"] == pytest.approx(result["steps"] * result["seconds_per_step"] / 3600)
    assert 0 < result["memory_gb"] < 0.1 and 0 < result["disk_gb"] < 0.1


def test_paper_scale_has_its_known_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """WRN-28-10 at 32x32: 36.5 M parameters, 5.24 G multiply-accumulates; nothing is downloaded."""
    monkeypatch.setattr(
        "trilemma.training.estimate.seconds_per_image", lambda network, macs, shape: macs / 1e10
    )
    monkeypatch.setattr("trilemma.training.estimate._is_to_come", lambda name, dataset: True)
    result = estimate(load_config("cifar10/wrn-28-10"), device="cpu")
    assert result["parameters"] == pytest.approx(36.5e6, rel=0.01)
    assert result["macs"] == pytest.approx(5.24e9, rel=0.01)
    assert result["steps"] == 100 * (45_000 // 128)
    assert any("will be downloaded" in check["message"] for check in result["checks"])
    assert 2 < result["memory_gb"] < 30


def test_the_disk_of_all_states_that_a_rollback_may_need_is_counted() -> None:
    without, late = (
        estimate(tiny("fgsm", monitors={"remedies": {"accuracy-gap": ladder}}), device="cpu")
        for ladder in (["stop"], [["rollback", "pgd-2"]])
    )
    state_gb = 4 * 4 * without["parameters"] / 1e9
    assert late["disk_gb"] - without["disk_gb"] == pytest.approx(7 * state_gb)


def test_missing_data_is_a_failed_check(tmp_path: Path) -> None:
    config = tiny("standard", data={"name": "folder", "root": str(tmp_path / "nowhere")})
    result = estimate(config, device="cpu")
    failed = [check for check in result["checks"] if not check["ok"]]
    assert [check["name"] for check in failed] == ["data"]
    assert "nowhere" in failed[0]["message"] and "\n" not in failed[0]["message"]
    assert "hours" not in result


def test_a_batch_larger_than_the_data_is_a_failed_check() -> None:
    result = estimate(tiny("standard", {"batch_size": 2000}), device="cpu")
    (failed,) = [check for check in result["checks"] if not check["ok"]]
    assert failed["name"] == "run" and "batch size 2000 is larger than the 300" in failed["message"]


def test_a_device_that_is_not_there_is_a_failed_check() -> None:
    result = estimate(tiny("standard"), device="cuda:7")
    failed = [check for check in result["checks"] if not check["ok"]]
    assert [check["name"] for check in failed] == ["device"] and "cuda:7" in failed[0]["message"]


def test_no_step_is_taken_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    estimate(tiny("eb-jdat"), device="cpu")
    assert list(tmp_path.iterdir()) == []
