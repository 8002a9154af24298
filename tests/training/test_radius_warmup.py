"""Warm-up of the radius: the attack of the first training steps is smaller, in exact shares, and evaluation is not."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from tests.training.support import STEPS_PER_EPOCH, tiny

import trilemma
from trilemma.errors import ConfigError
from trilemma.methods.creation import create_from_config
from trilemma.methods.pgd_at import PgdAT
from trilemma.units import parse_fraction


def test_radius_and_step_size_are_shares_of_their_values() -> None:
    config = tiny("pgd-at", attack={"steps": 2, "step_size": "0.1", "warmup_steps": 10})

    def at(step: int | None) -> tuple[Fraction, Fraction]:
        method = create_from_config(config, step)
        return method.threat.fraction, parse_fraction(method.attack.step_size or 0)

    fifth, tenth = Fraction(1, 5), Fraction(1, 10)
    assert at(0) == (fifth / 10, tenth / 10)
    assert at(4) == (fifth / 2, tenth / 2)
    assert at(9) == at(10) == at(None) == (fifth, tenth)


def test_a_run_warms_up_once_and_also_with_a_regulariser(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    radii: list[Fraction] = []
    points = PgdAT.points

    def recorded(self: PgdAT, *arguments: Any) -> Any:
        radii.append(self.threat.fraction)
        return points(self, *arguments)

    monkeypatch.setattr(PgdAT, "points", recorded)
    config = tiny(
        "pgd-at", {"epochs": 1}, attack={"steps": 1, "warmup_steps": 4}, regulariser={"name": "der"}
    )
    run = trilemma.train(config, out=tmp_path / "run", progress=False)
    shares = [Fraction(step, 4) for step in (1, 2, 3)] + [Fraction(1)] * (STEPS_PER_EPOCH - 3)
    # The run is preceded by one step on a copy, which checks the method.
    assert radii[-STEPS_PER_EPOCH:] == [share * Fraction(1, 5) for share in shares]
    assert run.classifier.threat == trilemma.Threat("linf", "0.2")


def test_a_method_without_an_attack_has_no_warmup_of_its_radius() -> None:
    with pytest.raises(ConfigError, match="method 'standard' has no attack"):
        tiny("standard", attack={"warmup_steps": 4})
