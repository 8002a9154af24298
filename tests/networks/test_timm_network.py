"""timm is tested through a stand-in: the real one need not be installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import trilemma
from trilemma.errors import CheckpointError, ConfigError, ImageError, MissingExtraError, UnknownNameError
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
    given = {"model_name": "resnet18.a1_in1k", "num_classes": 5, "in_chans": 1, "drop_rate": 0.1}
    # Measured without weights before it is built.
    assert calls == [{**given, "pretrained": False}, {**given, "pretrained": True}]
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


class Fixed(nn.Module):
    """A network of one image size, as a ViT."""

    num_classes = 1000
    pretrained_cfg = PUBLISHED

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1000, 224)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] == 224, f"Input height ({images.shape[2]}) doesn't match model (224)."
        logits: torch.Tensor = self.layer(images).flatten(1)
        return logits


def test_a_size_that_the_network_does_not_take_is_answered_with_its_own(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["timm"], "create_model", lambda *_, **__: Fixed())
    with pytest.raises(ImageError) as caught:
        trilemma.load("timm:resnet18", size=64)
    assert "cannot take images of 64x64 (AssertionError: Input height (64)" in str(caught.value)
    assert str(caught.value).endswith("; use --size 224") and "\n" not in str(caught.value)
    assert trilemma.load("timm:resnet18", size=224).image_shape == (3, 224, 224)


def test_a_failed_download_is_one_line(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> nn.Module:
        raise OSError("We couldn't connect to the hub\nand the file is not in the cache")

    monkeypatch.setattr(sys.modules["timm"], "create_model", offline)
    with pytest.raises(
        CheckpointError, match=r"its weights cannot be loaded .* connect to the int"
    ) as caught:
        trilemma.load("timm:resnet18")
    assert "\n" not in str(caught.value)


def test_arguments_that_timm_refuses_are_one_line(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> nn.Module:
        raise TypeError("unexpected keyword argument 'depht'")

    monkeypatch.setattr(sys.modules["timm"], "create_model", refuse)
    with pytest.raises(ConfigError, match=r"timm:resnet18: cannot be created .*'depht'.*check its arguments"):
        create_network(TimmOptions(model="resnet18", arguments={"depht": 3}), 5, (3, 8, 8))
