"""A batch: what a training method is handed in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images and labels of one step, on one device.

    Attributes:
        images: float32 ``[N, C, H, W]`` in [0, 1], augmented where the recipe says so.
        labels: int64 ``[N]``.
        views: other versions of the same images, same shape and order. ``"unaugmented"`` is the image before
            augmentation; where nothing was augmented it *is* ``images`` (the same object). ``"basic"`` is the
            image after crop and flip alone; where nothing more was done it *is* ``images``.
        indices: int64 ``[N]``, places in the image set, or ``None`` for images from elsewhere.
    """

    images: Tensor
    labels: Tensor
    views: Mapping[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None
