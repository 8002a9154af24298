"""``trilemma validate`` prints what the estimate found, and fails where a check fails. The estimate is a stub here."""

from __future__ import annotations

import json

import pytest

CHECKS = [
    {"name": "data", "ok": True, "message": "1,200 images"},
    {"name": "disk", "ok": True, "message": "9 GB free"},
]
ESTIMATE = {
    "device": "cpu",
    "parameters": 78_330,
    "macs": 12_500_000,
    "forward_passes_per_image": 39.0,
    "steps": 900,
    "seconds_per_step": 0.1,
    "hours": 0.025,
    "memory_gb": None,
    "disk_gb": 0.001,
}


@pytest.fixture
def found(monkeypatch):
    result = {"checks": [dict(check) for check in CHECKS], **ESTIMATE}
    monkeypatch.setattr("trilemma.training.estimate.estimate", lambda config, device: result)
    return result


def test_checks_and_estimates_are_printed(trilemma, found):
    result = trilemma("validate", "digits/eb-jdat")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "data ok 1,200 images" in lines
    assert "parameters 78,330" in lines
    assert "MACs per image 12.5 M" in lines
    assert "time in all, on this CPU 90 seconds" in lines
    assert "disk 1 MB" in lines
    assert not any("memory" in line for line in lines)


def test_json_is_the_estimate_itself(trilemma, found):
    assert json.loads(trilemma("validate", "digits/eb-jdat", "--json").stdout) == found


def test_a_failed_check_leaves_with_2_after_the_table(trilemma, found):
    found["checks"][1] = {"name": "disk", "ok": False, "message": "runs: 1 GB free, 3 GB needed; free some"}
    result = trilemma("validate", "digits/eb-jdat")
    assert result.exit_code == 2
    assert "FAILED" in result.stdout
    assert result.stderr.splitlines() == [
        "trilemma: error: digits/eb-jdat: 1 of 2 checks failed; disk: runs: 1 GB free, 3 GB needed; free some"
    ]


def test_a_mistake_in_the_config_comes_before_any_check(mistake):
    assert "unknown key" in mistake("validate", "digits/eb-jdat", "training.epoch=3")
