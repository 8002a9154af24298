"""The example method of the docs, outside the package in one file, is a method like any other."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import trilemma
from trilemma import energies
from trilemma.config.registry import METHODS
from trilemma.methods import MethodState
from trilemma.methods.base import Points

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RECIPE = EXAMPLES / "my_recipe.yaml"
THREAT = trilemma.Threat("linf", "0.2")


@pytest.fixture(scope="module")
def my_method() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS, "_rows", dict(METHODS._rows))
        specification = importlib.util.spec_from_file_location("my_method", EXAMPLES / "my_method.py")
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        patch.setitem(sys.modules, "my_method", module)
        specification.loader.exec_module(module)
        yield module


def a_classifier() -> trilemma.Classifier:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return trilemma.Classifier(network, 10, image_shape=(1, 8, 8), threat=THREAT)


def test_it_trains_from_its_recipe(my_method):
    quick = {"training.epochs": 2, "training.log_every": 3, "attack.steps": 1}
    run = trilemma.train(str(RECIPE), quick, out="run", progress=False)
    steps = [row for row in run.metrics if row["kind"] == "step"]
    assert set(steps[0]["terms"]) == {"natural", "robust", "pairing"}
    assert steps[-1]["terms"]["natural"] < steps[0]["terms"]["natural"]
    assert run.classifier.about["method"] == "logit-pairing"


def test_its_loss_is_its_equation(my_method):
    clf = a_classifier()
    clean, starred = torch.rand(2, 5, 1, 8, 8)
    labels = torch.arange(5)
    method = trilemma.methods.create("logit-pairing", THREAT, pairing=0.7)
    loss = method.terms(clf, Points(clean, labels, adversarial=starred), MethodState(0)).loss
    f, g = clf.logits(clean), clf.logits(starred)
    moved = torch.stack([energies.delta_energies(f, g, torch.full((5,), k))[1] for k in range(10)], dim=1)
    entropies = (energies.cross_entropy(f, labels) + energies.cross_entropy(g, labels)) / 2
    torch.testing.assert_close(loss, (entropies + 0.7 * moved.square().mean(1)).mean())


def test_its_images_are_in_the_ball_and_the_regulariser_can_ride_on_it(my_method):
    clf = a_classifier()
    data = (torch.rand(5, 1, 8, 8), torch.arange(5))
    method = trilemma.methods.create(
        "logit-pairing", THREAT, regulariser={"name": "der"}, attack={"steps": 2}
    )
    state = trilemma.methods.MethodState(seed=0)
    points = method.points(clf, trilemma.Batch(*data), state)
    assert points.adversarial is not None
    assert THREAT.contains(points.adversarial, data[0]).all()
    assert "der" in method.terms(clf, points, MethodState(0)).metrics


def test_an_entry_point_makes_the_command_line_know_it(tmp_path):
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[trilemma.methods]\nlogit-pairing = my_method:LogitPairing\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(EXAMPLES), *sys.path])
    code = (
        "from trilemma.cli.main import app; from trilemma.config.recipe import load_config; "
        f"assert load_config({str(RECIPE)!r}).method.pairing == 0.5; app(['list', 'methods', '--json'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "logit-pairing" in [row["name"] for row in json.loads(result.stdout)]


def test_the_recipe_in_the_docs_is_the_one_beside_it():
    page = (EXAMPLES.parent / "bring-your-own.md").read_text(encoding="utf-8")
    shown = page.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(shown) == yaml.safe_load(RECIPE.read_text())
