"""Any network of timm; needs the extra ``timm``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from trilemma.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    UnknownNameError,
    describe,
    nearest,
)
from trilemma.networks.without_torchvision import torchvision_optional


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
        ConfigError: pretrained, but no weights are published under this name; or timm refuses the arguments.
        CheckpointError: the weights cannot be downloaded.
    """
    timm = _timm(model, pretrained)
    return _created(
        timm, model, pretrained, num_classes=num_classes, in_chans=in_channels, **(arguments or {})
    )


def timm_classifier_parts(model: str) -> ClassifierParts:
    """Loads a network of timm as published: with weights, classes, normalisation and image shape.

    Raises:
        MissingExtraError: timm cannot be imported.
        UnknownNameError: timm has no such network.
        ConfigError: no weights are published under this name, or a network without a classifier layer.
        CheckpointError: the weights cannot be downloaded.
    """
    network: Any = _created(_timm(model, pretrained=True), model, True)
    if network.num_classes < 2:
        raise ConfigError(f"timm:{model}: has no classifier layer, only features; choose another network")
    about = network.pretrained_cfg
    channels, height, width = about["input_size"]
    return ClassifierParts(
        network, network.num_classes, tuple(about["mean"]), tuple(about["std"]), (channels, height, width)
    )


def _created(timm: ModuleType, model: str, pretrained: bool, **arguments: Any) -> nn.Module:
    """``timm.create_model`` with an error of one line: it raises many types, also those of the hub.

    Raises:
        CheckpointError: pretrained weights that cannot be loaded.
        ConfigError: arguments that timm refuses.
    """
    try:
        network: nn.Module = timm.create_model(model, pretrained=pretrained, **arguments)
    except Exception as error:
        if pretrained and not isinstance(error, TypeError):
            raise CheckpointError(
                f"timm:{model}: its weights cannot be loaded ({describe(error)}); the first use downloads them, so "
                "connect to the internet, or copy the download cache of another machine"
            ) from error
        raise ConfigError(
            f"timm:{model}: cannot be created ({describe(error)}); check its arguments"
        ) from error
    return network


def _timm(model: str, pretrained: bool) -> ModuleType:
    """Imports timm and checks that it has ``model``, with published weights if ``pretrained``.

    Raises:
        MissingExtraError: timm cannot be imported.
        UnknownNameError: timm has no such network.
        ConfigError: pretrained, but no weights are published under this name.
    """
    try:
        with torchvision_optional():
            timm = import_module("timm")
    except ImportError as error:
        raise MissingExtraError(
            f"network timm:{model} needs timm, which cannot be imported ({error}); pip install -e '.[timm]' in "
            "the clone, then pip install --no-deps timm"
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
