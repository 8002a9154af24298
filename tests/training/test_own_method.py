"""A method of the user's own, in one file outside the package, trains like any other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.training.conftest import Interrupt
from tests.training.support import differences, state_of

from trilemma.config.recipe import load_config
from trilemma.config.registry import METHODS
from trilemma.errors import ConfigError
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.train import train

OWN = '''
"""Cross-entropy on softened labels."""
from typing import Literal

import torch.nn.functional as F
from pydantic import Field

from trilemma.config.config import MethodOptions
from trilemma.methods import Method
from trilemma.methods import Step
from trilemma.methods.base import detached


class SoftOptions(MethodOptions):
    name: Literal["soft"] = "soft"
    softness: float = Field(0.1, ge=0, lt=1)


class Soft(Method):
    Options = SoftOptions

    def terms(self, clf, points, state):
        logits = clf.logits(points.clean)
        loss = F.cross_entropy(logits, points.labels, label_smoothing=self.options.softness)
        return Step(loss, clean=detached(points.clean, logits), metrics={"soft": loss.detach()})
'''
RECIPE = """
data: {name: digits}
network: {name: small-resnet, width: 8}
method: {name: soft, softness: 0.2}
training: {epochs: 1, lr: 0.05, log_every: 5, held_out_images: 50}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_soft_method.py").write_text(OWN)
    (tmp_path / "soft.yaml").write_text(RECIPE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    METHODS.add("soft", "my_soft_method:Soft", summary="softened labels")
    monkeypatch.delitem(sys.modules, "my_soft_method", raising=False)
    return str(tmp_path / "soft.yaml")


def test_it_trains_from_a_recipe_file_with_overrides(recipe: str, tmp_path: Path) -> None:
    run = train(recipe, ["method.softness=0.3"], out=tmp_path / "run", progress=False)
    assert RunDirectory.open(run.path).config().method.model_dump()["softness"] == 0.3
    assert run.classifier.about["method"] == "soft" and run.classifier.about["recipe"] == "soft"
    assert all("soft" in row["terms"] for row in run.metrics if row["kind"] == "step")


def test_its_options_are_checked_like_any_other(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.softnes: unknown key. Did you mean 'softness'"):
        load_config(recipe, ["method.softnes=0.3"])


def test_it_resumes_bit_for_bit(recipe: str, tmp_path: Path, interrupt_after: Interrupt) -> None:
    train(recipe, out=tmp_path / "whole", progress=False)
    interrupt_after(4)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "broken", progress=False)
    interrupt_after(0)
    train(recipe, out=tmp_path / "broken", resume=True, progress=False)
    assert differences(state_of(tmp_path / "whole"), state_of(tmp_path / "broken")) == []
