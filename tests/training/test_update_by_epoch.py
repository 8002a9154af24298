"""The loop tells the weight update which epoch it is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.training.support import STEPS_PER_EPOCH, tiny

from trilemma.methods import Step
from trilemma.training import build
from trilemma.training.train import train
from trilemma.updates.updates import plain


def test_the_perturbation_of_the_weights_begins_at_its_epoch_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gammas: list[float] = []

    def recorded(*arguments: Any, network: Any, gamma: float) -> Step:
        gammas.append(gamma)
        return plain(*arguments)

    monkeypatch.setattr(build, "awp", recorded)
    update = {"name": "awp", "gamma": 0.02, "from_epoch": 3}
    train(tiny("standard", {"epochs": 3}, update=update), out=tmp_path / "run", progress=False)
    assert gammas == [0.02] * STEPS_PER_EPOCH
