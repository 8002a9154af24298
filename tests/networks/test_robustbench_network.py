"""RobustBench is tested through a stand-in: the real one need not be installed, and its weights are downloads."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import trilemma
from trilemma.errors import MissingExtraError, UnknownNameError


class Data(Enum):
    cifar_10 = "cifar10"
    imagenet = "imagenet"


class Norm(Enum):
    Linf = "Linf"
    L2 = "L2"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Installs a robustbench with three networks, which writes down how it was called."""
    made: list[dict[str, Any]] = []

    def load_model(**arguments: Any) -> nn.Module:
        made.append(arguments)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    package, utils, zoo = (ModuleType(f"robustbench{end}") for end in ("", ".utils", ".model_zoo"))
    utils.load_model = load_model  # type: ignore[attr-defined]
    zoo.model_dicts = {  # type: ignore[attr-defined]
        Data.cifar_10: {Norm.Linf: {"Carmon2019Unlabeled": {}}, Norm.L2: {"Wang2023Better": {}}},
        Data.imagenet: {Norm.Linf: {"Salman2020Do_R18": {}}},
    }
    for module in (package, utils, zoo):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path))
    return made


def test_a_bare_name_is_of_cifar10_and_linf_and_downloads_into_the_cache(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    clf = trilemma.load("robustbench:Carmon2019Unlabeled")
    folder = str(tmp_path / "robustbench")
    assert calls == [
        {
            "model_name": "Carmon2019Unlabeled",
            "dataset": "cifar10",
            "threat_model": "Linf",
            "model_dir": folder,
        }
    ]
    assert clf.threat == trilemma.Threat("linf", "8/255") and clf.num_classes == 10
    assert clf.mean is None  # it normalises inside
    assert clf(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "threat", "classes"),
    [
        ("cifar10/L2/Wang2023Better", ("l2", "0.5"), 10),
        ("imagenet/Linf/Salman2020Do_R18", ("linf", "4/255"), 1000),
    ],
)
@pytest.mark.usefixtures("calls")
def test_data_and_norm_stand_before_the_name(name: str, threat: tuple[str, str], classes: int) -> None:
    clf = trilemma.load(f"robustbench:{name}")
    assert (clf.threat, clf.num_classes) == (trilemma.Threat(*threat), classes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Carmon2019Unlabelled", "no network .* for cifar10, Linf. Did you mean 'Carmon2019Unlabeled'"),
        ("cifar10/L2/Carmon2019Unlabeled", "no network 'Carmon2019Unlabeled' for cifar10, L2"),
        ("mnist/Linf/Some", "write robustbench:DATA/NORM/NAME, DATA/NORM one of cifar10/Linf, "),
        ("Linf/Some", "write robustbench:DATA/NORM/NAME"),
    ],
)
def test_a_wrong_name_is_answered_before_any_download(
    calls: list[dict[str, Any]], name: str, expected: str
) -> None:
    with pytest.raises(UnknownNameError, match=expected):
        trilemma.load(f"robustbench:{name}")
    assert not calls


def test_without_robustbench_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[robustbench\]'"):
        trilemma.load("robustbench:Carmon2019Unlabeled")
