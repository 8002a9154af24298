"""One convolution: the smallest network in which single-step training collapses as it does in large ones."""

from __future__ import annotations

from torch import Tensor, nn

from trilemma.networks.layers import make_activation


class ShallowCNN(nn.Module):
    """A 3x3 convolution, an activation and a linear layer on all feature maps; no normalisation, no pooling.

    ``[N, C, H, W]`` to logits ``[N, K]``. The network with few filters in which Andriushchenko and Flammarion (2020,
    2007.02617) show catastrophic overfitting. With 4 filters and 10 classes it has 41,082 parameters on 32x32 colour
    images.

    Args:
        num_classes: K.
        image_shape: ``(C, H, W)``, pixels; the network accepts images of this size only.
        filters: number of filters of the convolution.
        activation: relu, leaky_relu (slope 0.2) or silu.

    Raises:
        UnknownNameError: an unknown activation.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        filters: int = 4,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, filters, 3, padding=1), make_activation(activation), nn.Flatten()
        )
        self.classifier = nn.Linear(filters * height * width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Feature maps ``[N, filters x H x W]``, the input of the linear layer."""
        maps: Tensor = self.body(images)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits
