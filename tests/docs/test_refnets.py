"""The loader example of the docs: arrays and a list of layers become the network they came from."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests import reference_models
from torch import nn
from typer.testing import CliRunner

import trilemma
from trilemma.cli.main import app

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# one of each kind of layer; all of MNIST would have to be decoded for the others
SHORT = {"cnn_a_mix": "cifar10_cnn_a_mix", "resnet4b": "cifar10_resnet4b_at2"}


@pytest.fixture
def refnets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("refnets", EXAMPLES / "refnets.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "refnets", module)
    specification.loader.exec_module(module)
    return module


def evaluated(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(
        app, ["evaluate", *map(str, arguments), "--no-lint", "--json"], prog_name="trilemma"
    )
    assert result.exit_code == 0, result.output
    rows: dict[str, Any] = json.loads(result.stdout)
    return rows


def test_a_network_of_ones_own_arrays(refnets, tmp_path, monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 10)
    )
    arrays = {f"p{place:02d}": value.numpy() for place, value in enumerate(network.state_dict().values())}
    np.savez(tmp_path / "tiny.npz", **arrays)
    arch = [["conv", 2, 1], ["relu"], ["maxpool", 2], ["flatten"], ["linear"]]
    (tmp_path / "models.json").write_text(json.dumps({"tiny": {"arch": arch, "mean": [0.5], "std": [0.3]}}))
    monkeypatch.setenv("REFNETS", str(tmp_path))
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(refnets.classifier("tiny")(images), network((images - 0.5) / 0.3))
    refnets.tiny = lambda: refnets.classifier("tiny")
    options = ["--data", "digits", "--protocol", "clean", "--images", 50]
    row = evaluated("--model", "refnets:tiny", *options)["clean"]
    clf = trilemma.Classifier(network, 10, [0.5], [0.3]).eval()
    assert row["value"] == trilemma.evaluate(clf, "digits", ["clean"], images=50)["clean"]["value"]


@pytest.mark.parametrize("short", SHORT)
def test_the_published_networks_are_those_of_the_recorded_verdicts(refnets, monkeypatch, short):
    monkeypatch.setenv("REFNETS", str(reference_models.FOLDER))
    clf, images, labels, _ = reference_models.reference(SHORT[short], count=40)
    found = getattr(refnets, short)().eval()
    torch.testing.assert_close(found(images), clf(images))
    recorded = reference_models.verdicts(SHORT[short])["clean"][:40]
    assert torch.equal(found(images).argmax(1) == labels, recorded)


def test_the_command_of_the_page_works_as_written(refnets, monkeypatch):
    reference_models.models()  # skips where they are not
    monkeypatch.setenv("REFNETS", str(reference_models.FOLDER))
    data = reference_models.SHARED / "data" / "cifar10-lossless-subset"
    options = ["--data", data, "--norm", "linf", "--radius", "2/255", "--images", 40]
    rows = evaluated("--model", "refnets:cnn_a_mix", *options)
    assert rows["clean"]["value"] > 0.6 and rows["pgd-20"]["threat"] == {"norm": "linf", "radius": "2/255"}
    assert rows["pgd-20"]["value"] <= rows["clean"]["value"]
