"""Third-party robust networks with recorded AutoAttack verdicts; tests that want them skip where they are absent."""

from __future__ import annotations

import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from trilemma import Classifier, Threat
from trilemma.data.sources import load_images

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
FOLDER = SHARED / "reference-models"
NAMES = (
    "cifar10_cnn_a_mix",
    "cifar10_resnet4b_at2",
    "cifar10_wk_small_l2_36px",
    "mnist_colt_linf01",
    "mnist_wk_small_linf03",
)


class Block(nn.Module):
    """Residual block without BatchNorm; a biased 1x1 shortcut where it strides."""

    def __init__(self, arrays: list[Tensor], stride: int) -> None:
        super().__init__()
        self.first = convolution(arrays[0], arrays[1], stride, 1)
        self.second = convolution(arrays[2], arrays[3], 1, 1)
        self.shortcut = convolution(arrays[4], arrays[5], stride, 0) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.shortcut(x)).relu()  # type: ignore[no-any-return]


def convolution(weight: Tensor, bias: Tensor, stride: int, padding: int) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
    layer.weight.data, layer.bias.data = weight, bias  # type: ignore[union-attr]
    return layer


def network(name: str) -> nn.Sequential:
    """The network of ``name``, without its normalisation."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = [torch.from_numpy(file[key]) for key in sorted(file.files)]
    layers: list[nn.Module] = []
    for kind, *numbers in models()[name]["arch"]:
        if kind == "conv":
            layers.append(convolution(arrays.pop(0), arrays.pop(0), *numbers))
        elif kind == "linear":
            weight, bias = arrays.pop(0), arrays.pop(0)
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = weight, bias
            layers.append(layer)
        elif kind == "block":
            count = 6 if numbers[0] != 1 else 4
            layers.append(Block([arrays.pop(0) for _ in range(count)], numbers[0]))
        elif kind == "maxpool":
            layers.append(nn.MaxPool2d(numbers[0]))
        else:
            layers.append({"relu": nn.ReLU, "flatten": nn.Flatten}[kind]())
    assert not arrays
    return nn.Sequential(*layers)


def models() -> dict[str, Any]:
    if not FOLDER.is_dir():
        pytest.skip("the reference models are not beside the project (../shared/reference-models)")
    found: dict[str, Any] = json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))
    return found


def verdicts(name: str) -> dict[str, Any]:
    """``clean`` and ``robust`` as bool ``[250]``, and the recorded accuracies and seconds."""
    models()
    record: dict[str, Any] = json.loads((FOLDER / "autoattack-verdicts.json").read_text(encoding="utf-8"))[
        name
    ]
    flags = {key: torch.tensor([digit == "1" for digit in record[key]]) for key in ("clean", "robust")}
    return {**record, **flags}


def reference(name: str, count: int = 250) -> tuple[Classifier, Tensor, Tensor, Threat]:
    """Classifier, images ``[count, C, H, W]`` float32, labels, and threat; the first official test images."""
    about, record = models()[name], verdicts(name)
    clf = Classifier(
        network(name), 10, about["mean"], about["std"], threat=Threat(record["norm"], record["radius"])
    )
    images, labels = official_images(about["data"], count)
    assert clf.threat is not None
    return clf.eval(), images, labels, clf.threat


def official_images(data: str, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` official test images of ``cifar10`` (original pixels) or ``mnist``, and their labels."""
    if data == "mnist":
        images, labels = _first_of_mnist()
        return images[:count], labels[:count]
    found = load_images(SHARED / "data" / {"cifar10": "cifar10-lossless-subset"}.get(data, data))
    return found.float_images(torch.arange(count)), found.labels[:count]


@cache
def _first_of_mnist() -> tuple[Tensor, Tensor]:
    """The first 250 test images, read from the archive: the package would decode all 70,000 images of the folder."""
    read: dict[int, tuple[np.ndarray, int]] = {}
    with tarfile.open(SHARED / "data" / "mnist" / "test.tar.gz") as archive:
        for member in archive:
            _, label, name = member.name.split("/")
            # the test images are numbered from 60000 on in the official order
            number = int(name.removesuffix(".png")) - 60_000
            if number < 250 and (file := archive.extractfile(member)) is not None:
                read[number] = (np.array(Image.open(file)), int(label))
    pixels = np.stack([read[number][0] for number in range(250)])
    labels = torch.tensor([read[number][1] for number in range(250)])
    return torch.from_numpy(pixels)[:, None].float() / 255, labels
