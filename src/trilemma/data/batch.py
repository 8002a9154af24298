"""A batch: the images and labels that a training method gets in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images and labels of one step, on one device.

    Attributes:
        images: float32 ``[N, C, H, W]`` in [0, 1], augmented as the recipe specifies.
        labels: int64 ``[N]``.
        views: other versions of the same images, same shape and order. ``"unaugmented"``: before augmentation; the same
            object as ``images`` if there is no augmentation. ``"basic"``: after crop and flip only; the same object as
            ``images`` if there is no further augmentation.
        indices: int64 ``[N]``, positions in the image set; ``None`` for images that are not from an image set.
    """

    images: Tensor
    labels: Tensor
    views: Mapping[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None
