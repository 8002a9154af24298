"""Any network of timm; needs the extra ``timm``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from trilemma.errors import ConfigError, MissingExtraError, UnknownNameError, nearest


class ClassifierParts(NamedTuple):
    """A published network and the arguments of :class:`trilemma.Classifier` for it."""

    network: nn.Module
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]


def timm_network(
    num_classes: int,
    in_channels: int = 3,
    *,
    model: str,
    pretrained: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Creates a network of timm with a new classifier layer: images ``[N, C, H, W]`` to logits ``[N, K]``.

    The network does not include its published normalisation; pass it to :class:`trilemma.Classifier` as mean and std.

    Args:
        num_classes: K.
        in_channels: C.
        model: timm's name, with or without a weight tag: ``resnet18``, ``resnet18.a1_in1k``.
        pretrained: initialise with the published weights (downloads them).
        arguments: further arguments of ``timm.create_model``, such as ``img_size`` for a transformer.

    Raises:
        MissingExtraError: timm cannot be imported.
        UnknownNameError: timm has no such network.
        ConfigError: pretrained, but no weights are published under this name.
    """
    network: nn.Module = _timm(model, pretrained).create_model(
        model, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **(arguments or {})
    )
    return network


def timm_classifier_parts(model: str) -> ClassifierParts:
    """Loads a network of timm as published: with weights, classes, normalisation and image shape.

    Raises:
        MissingExtraError: timm cannot be imported.
        UnknownNameError: timm has no such network.
        ConfigError: no weights are published under this name.
    """
    network: Any = _timm(model, pretrained=True).create_model(model, pretrained=True)
    about = network.pretrained_cfg
    channels, height, width = about["input_size"]
    return ClassifierParts(
        network, network.num_classes, tuple(about["mean"]), tuple(about["std"]), (channels, height, width)
    )


def _timm(model: str, pretrained: bool) -> ModuleType:
    """Imports timm and checks that it has ``model``, with published weights if ``pretrained``.

    Raises:
        MissingExtraError: timm cannot be imported.
        UnknownNameError: timm has no such network.
        ConfigError: pretrained, but no weights are published under this name.
    """
    try:
        timm = import_module("timm")
    except ImportError as error:
        raise MissingExtraError(
            f"network timm:{model} needs timm, which cannot be imported ({error}); pip install -e '.[timm]' in "
            f"the clone"
        ) from error
    # hf-hub:OWNER/NAME and similar names are resolved by timm when the network is created.
    if ":" in model:
        return timm
    if not timm.is_model(model):
        raise UnknownNameError(
            f"network.model: timm has no {model!r}.{nearest(model, timm.list_models())} "
            "timm.list_models() shows all"
        )
    if pretrained and not timm.is_model_pretrained(model):
        raise ConfigError(
            f"network.pretrained: timm has no weights for {model!r}; "
            "timm.list_models('*', pretrained=True) shows all"
        )
    return timm
