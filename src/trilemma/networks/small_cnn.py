"""The small convolutional network of the MNIST experiments of Wong et al. 2020 (arXiv 2001.03994)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.layers import make_activation

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

    # The blocks of the first convolution, and the flattening before the first linear layer, are contiguous: in
    # channels-last their copies cost a tenth to a half of the time on a CPU.
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
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
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
        first, *others = self.body
        assert isinstance(first, nn.Conv2d)
        features = blockwise_convolution(first, images)
        for layer in others:
            features = layer(features)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


def blockwise_convolution(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """The result of a 4x4 convolution of stride 2 and padding 1, as a 2x2 convolution of stride 1.

    The image is cut into blocks of 2x2 pixels, each of which becomes 4 C channels. The products are the same, but a
    convolution of one channel and its gradient take a third of the time on a CPU.

    Args:
        conv: kernel 4, stride 2, padding 1, with a bias.
        images: ``[N, C, H, W]``.

    Returns:
        ``[N, D, H // 2, W // 2]``.
    """
    outputs, channels = conv.weight.shape[:2]
    height, width = images.shape[2:]
    blocks = F.pixel_unshuffle(F.pad(images, (1, 1 - width % 2, 1, 1 - height % 2)), 2)
    # Kernel axes [D, C, block row, row in block, block column, column in block]; pixel_unshuffle puts the places in a
    # block behind the channel.
    kernel = conv.weight.view(outputs, channels, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4)
    return F.conv2d(blocks, kernel.reshape(outputs, 4 * channels, 2, 2), conv.bias)
