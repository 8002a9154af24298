"""Image sets from the caller's own tensors, checked at the door and never rounded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from trilemma.data.image_set import ImageSet
from trilemma.errors import DataError

RANGE_TOLERANCE = 1e-4


def tensor_set(images: Tensor, labels: Tensor, split: str, class_names: Sequence[str] | None) -> ImageSet:
    """Wrap ``[N, C, H, W]`` images (uint8, or float in [0, 1]) and integer labels ``[N]``.

    Without ``class_names`` there are as many classes as the largest label asks for, named by their numbers.
    The set is called ``tensors:`` and the first 12 digits of the SHA-256 of its content.

    Raises:
        DataError: wrong type, shape or range, NaN, or labels out of range.
    """
    if (
        images.ndim != 4
        or len(images) == 0
        or not (images.dtype == torch.uint8 or images.is_floating_point())
    ):
        raise DataError(
            f"images are {images.dtype} {list(images.shape)}; needs uint8 or float [N, C, H, W], N >= 1"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"labels are {labels.dtype}; needs integers, one per image")
    images, labels = images.detach().cpu().contiguous(), labels.detach().cpu().long()
    if images.dtype != torch.uint8:
        low, high = images.min().item(), images.max().item()
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # false for NaN as well
            raise DataError(
                f"images range from {low:g} to {high:g}; float images must be in [0, 1], without NaN"
            )
        images = images.float().clamp(0, 1)
    names = tuple(class_names) if class_names else tuple(str(k) for k in range(max(1, int(labels.max()) + 1)))
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    return ImageSet(images, labels, names, f"tensors:{digest[:12]}", split)
