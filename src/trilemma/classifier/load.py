"""``trilemma.load``: loads a classifier from a run folder, a file, a published network, or the user's own network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.source import ClassifierSource
from trilemma.data.image_set import ImageSet


def load(
    source: str | Path | None = None,
    *,
    model: str | nn.Module | Callable[[], nn.Module] | None = None,
    network: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: int | None = None,
    classes: int | str | Path | Sequence[str] | None = None,
    output: str | int | None = None,
    checkpoint: Literal["best", "last"] = "best",
    data: str | Path | ImageSet | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Loads a classifier; the arguments are the options that every command takes.

    Args:
        source: a run folder, a classifier file, a file of ``trilemma export``, a file of weights, ``timm:NAME``,
            ``robustbench:NAME``, ``hub:OWNER/NAME[@REVISION]`` or ``MODULE:FUNCTION``.
        model: the network of the weights: ``MODULE:FUNCTION``, a function without arguments, or a module.
        network: the network of the weights: ``NAME[,key=value,...]``, such as ``"wide-resnet,depth=34"``.
        mean, std: normalisation before the network, one number or one per channel.
        size: images are resized to ``size`` x ``size`` pixels for the network.
        classes: number of outputs, their names in order, or the path of a text file with one name per line.
        output: key or index of the logits, for a network that returns a dictionary or a tuple.
        checkpoint: the checkpoint of a run; the last one if there is no best.
        data: data whose classes and image shape the classifier has, where nothing else states them.
        device: the device to move it to.

    Returns:
        A classifier in eval mode.

    Raises:
        CheckpointError: no such run or file, no finished classifier, or weights that do not fit.
        ConfigError: two arguments contradict each other, or the network is not known.
        MissingExtraError: the package of the published network is not installed.
        UnknownNameError: no network of this name.
    """
    described = ClassifierSource(source, model, network, mean, std, size, classes, output, checkpoint)
    return described.open(device, data)
