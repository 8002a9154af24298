"""Diagnosis: three sets of equal size, repeatable, with figures in both themes."""

from __future__ import annotations

import numpy as np
import pytest

import trilemma
from trilemma.errors import ConfigError
from trilemma.evaluation.diagnose import diagnose
from trilemma.runs.records import read_record


def test_a_run_gets_numbers_and_figures_in_both_themes(complete_run):
    figures = complete_run.path / "figures"
    assert read_record(figures / "energies.json") == complete_run.diagnosis
    for name in ("energy-histograms", "energy-quiver"):
        assert (figures / f"{name}.png").read_bytes() != (figures / f"{name}-dark.png").read_bytes()
    with np.load(figures / "energies.npz") as energies:
        assert {len(energies[name]) for name in energies.files} == {20}
        assert (energies["clean_joint"] >= energies["clean_marginal"] - 1e-5).all()


def test_the_attack_raises_the_loss_and_the_seed_repeats_it(finished_run):
    clf = trilemma.load(finished_run)
    first, second = (diagnose(clf, "digits", images=20, attacks=["pgd"], seed=1) for _ in range(2))
    assert first == second
    shift = first["shift"]
    # dE(x, y) - dE(x) = CE(x) - CE(x*), which an attack makes negative
    assert shift["delta_joint"]["mean"] < shift["delta_marginal"]["mean"]


def test_without_class_statistics_generation_starts_from_noise_and_says_so(clf, grey):
    record = diagnose(clf, grey, trilemma.Threat("linf", 0.1), images=6)
    assert record["generated"].endswith("from uniform")
    assert record["sets"]["generated"]["count"] == 6


def test_a_missing_threat_is_one_clear_line(clf, grey):
    with pytest.raises(ConfigError, match="no threat stored"):
        diagnose(clf, grey)
