"""timm is tested through a stand-in: the real one need not be installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from trilemma.errors import ConfigError, MissingExtraError, UnknownNameError
from trilemma.networks.create import create_network
from trilemma.networks.options import TimmOptions
from trilemma.networks.timm_network import timm_classifier_parts

PUBLISHED = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Installs a timm that knows ``resnet18`` in two versions and writes down how it was called."""
    made: list[dict[str, Any]] = []

    def create_model(model_name: str, **arguments: Any) -> nn.Module:
        made.append({"model_name": model_name, **arguments})
        network = nn.Sequential(nn.Flatten(), nn.LazyLinear(arguments.get("num_classes", 1000)))
        network.num_classes = arguments.get("num_classes", 1000)
        network.pretrained_cfg = PUBLISHED  # type: ignore[assignment]
        return network

    timm = ModuleType("timm")
    timm.is_model = lambda name: name.partition(".")[0] == "resnet18"  # type: ignore[attr-defined]
    timm.is_model_pretrained = lambda name: name in ("resnet18", "resnet18.a1_in1k")  # type: ignore[attr-defined]
    timm.list_models = lambda: ["resnet18"]  # type: ignore[attr-defined]
    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    return made


def test_the_task_and_the_options_reach_timm(calls: list[dict[str, Any]]) -> None:
    options = TimmOptions(model="resnet18.a1_in1k", pretrained=True, arguments={"drop_rate": 0.1})
    network = create_network(options, num_classes=5, image_shape=(1, 8, 8))
    assert calls == [
        {
            "model_name": "resnet18.a1_in1k",
            "pretrained": True,
            "num_classes": 5,
            "in_chans": 1,
            "drop_rate": 0.1,
        }
    ]
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 5)


def test_a_misspelt_model_is_answered_with_the_nearest(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(UnknownNameError, match=r"no 'resnet81'\. Did you mean 'resnet18'"):
        create_network(TimmOptions(model="resnet81"), 5, (3, 8, 8))
    assert not calls


def test_a_hub_name_is_left_to_timm(calls: list[dict[str, Any]]) -> None:
    create_network(TimmOptions(model="hf-hub:someone/net"), 5, (3, 8, 8))
    assert calls[0]["model_name"] == "hf-hub:someone/net"


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm:resnet18 .* pip install -e '\.\[timm\]'"):
        create_network(TimmOptions(model="resnet18"), 5, (3, 8, 8))


def test_a_published_classifier_comes_with_its_normalisation_and_shape(calls: list[dict[str, Any]]) -> None:
    parts = timm_classifier_parts("resnet18")
    assert calls == [{"model_name": "resnet18", "pretrained": True}]
    assert parts[1:] == (1000, PUBLISHED["mean"], PUBLISHED["std"], PUBLISHED["input_size"])


@pytest.mark.usefixtures("calls")
def test_weights_that_nobody_published_are_not_replaced_by_random_ones() -> None:
    with pytest.raises(ConfigError, match=r"no weights for 'resnet18\.unpublished'"):
        timm_classifier_parts("resnet18.unpublished")
    with pytest.raises(ConfigError, match="no weights for"):
        create_network(TimmOptions(model="resnet18.unpublished", pretrained=True), 5, (3, 8, 8))
