"""The small convolutional network of the MNIST experiments of Wong et al. 2020 (arXiv 2001.03994)."""

from __future__ import annotations

from torch import Tensor, nn

from trilemma.errors import ConfigError
from trilemma.networks.layers import make_activation
from trilemma.networks.stem import StemConvolution

REDUCTION = 4


class SmallCNN(nn.Module):
    """Two strided convolutions and two linear layers: images ``[N, C, H, W]`` to logits ``[N, K]``.

    conv(``width``, 4x4, stride 2), conv(2 ``width``, 4x4, stride 2), linear ``hidden``, linear K, with an activation
    after each layer but the last. With the defaults it has 0.17 M parameters and 0.61 M multiply-accumulates on a
    28x28 grey image. Weights have PyTorch's own initialisation, as published, and are drawn from its default generator.

    Args:
        num_classes: K.
        image_shape: ``(C, H, W)``, pixels; H and W at least 4. The first linear layer depends on them, so that the
            network accepts images of this size only.
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the first linear layer.
        activation: relu, leaky_relu (slope 0.2) or silu.

    Raises:
        ConfigError: images smaller than 4x4 pixels.
        UnknownNameError: an unknown activation.
    """

    # The flattening before the first linear layer is of contiguous maps: in channels-last its copy costs a tenth of the
    # time on a CPU.
    contiguous_is_faster = True

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 16,
        hidden: int = 100,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        if min(height, width_px) < REDUCTION:
            raise ConfigError(
                f"network.name: small-cnn needs images of at least {REDUCTION}x{REDUCTION} pixels, "
                f"got {height}x{width_px}"
            )
        pixels = (height // REDUCTION) * (width_px // REDUCTION)
        self.body = nn.Sequential(
            StemConvolution(channels, width, 4, stride=2, padding=1),
            make_activation(activation),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            make_activation(activation),
            nn.Flatten(),
            nn.Linear(2 * width * pixels, hidden),
            make_activation(activation),
        )
        self.classifier = nn.Linear(hidden, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The input of the last linear layer, ``[N, hidden]``."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits
