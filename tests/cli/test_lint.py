"""The lint on the command line: on standard error for rows, first on standard output for a diagnosis."""

from __future__ import annotations

import json

import pytest

SOFT = """
import torch
def soft():
    torch.manual_seed(0)  # at chance level, the look at normalisation depends on which network it is
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Softmax(1))
"""


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """``FN`` of a module in the current folder, whose network ends in a softmax."""
    (tmp_path / "mine_with_softmax.py").write_text(SOFT)
    return "mine_with_softmax:soft"


def test_findings_go_to_standard_error_and_into_the_rows(trilemma, own_network):
    result = trilemma(
        "evaluate", "--model", own_network, "--data", "digits", "--protocol", "clean", "--json", "-q"
    )
    assert "lint: error: softmax-outputs (128 of 128 images): " in result.stderr
    row = json.loads(result.stdout)["clean"]
    # The network is untrained, which is found too.
    assert [found["name"] for found in row["lint"]["findings"]] == ["at-chance", "softmax-outputs"]


def test_nothing_found_and_nobody_looked_are_one_line(trilemma, run_folder):
    base = ("evaluate", run_folder, "--protocol", "clean", "--images", 20)
    assert "lint: nothing found on 20 images" in trilemma(*base).stderr
    assert "lint" not in trilemma(*base, "--quiet").stderr
    result = trilemma(*base, "--no-lint", "--json")
    assert "lint: not run" in result.stderr
    assert json.loads(result.stdout)["clean"]["lint"] is None


def test_a_diagnosis_begins_with_the_lint(trilemma, run_folder):
    result = trilemma("diagnose", run_folder, "--images", 20, "--attack", "pgd", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("lint: nothing found on 20 images\n")
