"""Networks that come as plain arrays and a list of layers, made into classifiers.

A folder (REFNETS, by default reference-models/) holds NAME.npz, with the arrays in the order of the layers, weight
before bias, and models.json, which has of each NAME `arch`, `mean` and `std`. Then, in the folder of this file:

trilemma evaluate --model refnets:cnn_a_mix --data PATH --norm linf --radius 2/255
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import trilemma


def conv(arrays: Iterator[Tensor], stride: int, padding: int) -> nn.Module:
    weight, bias = next(arrays), next(arrays)
    return filled(nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding), weight, bias)


def linear(arrays: Iterator[Tensor]) -> nn.Module:
    weight, bias = next(arrays), next(arrays)
    return filled(nn.Linear(weight.shape[1], weight.shape[0]), weight, bias)


def filled(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


class Block(nn.Module):
    """Two 3x3 convolutions beside the input, which a 1x1 convolution shrinks where they stride."""

    def __init__(self, arrays: Iterator[Tensor], stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(arrays, stride, 1), nn.ReLU(), conv(arrays, 1, 1))
        self.beside = conv(arrays, stride, 0) if stride != 1 else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images) + self.beside(images)
        return features.relu()


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "conv": conv,
    "linear": linear,
    "block": Block,
    "relu": lambda _: nn.ReLU(),
    "flatten": lambda _: nn.Flatten(),
    "maxpool": lambda _, size: nn.MaxPool2d(size),
}


def classifier(name: str) -> trilemma.Classifier:
    """The network called `name`, with its normalisation."""
    folder = Path(os.environ.get("REFNETS", "reference-models"))
    about = json.loads((folder / "models.json").read_text())[name]
    with np.load(folder / f"{name}.npz") as file:
        arrays = iter([torch.from_numpy(file[key]) for key in sorted(file.files)])
    network = nn.Sequential(*(LAYERS[kind](arrays, *numbers) for kind, *numbers in about["arch"]))
    if next(arrays, None) is not None:
        raise ValueError(f"{name}: has more arrays than its layers take")
    last = [layer for layer in network if isinstance(layer, nn.Linear)][-1]
    return trilemma.Classifier(network, last.out_features, about["mean"], about["std"])


cnn_a_mix = partial(classifier, "cifar10_cnn_a_mix")
resnet4b = partial(classifier, "cifar10_resnet4b_at2")
small_l2 = partial(classifier, "cifar10_wk_small_l2_36px")
mnist_colt = partial(classifier, "mnist_colt_linf01")
mnist_small = partial(classifier, "mnist_wk_small_linf03")
