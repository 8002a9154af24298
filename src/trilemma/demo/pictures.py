"""Reads an uploaded image into the format of a classifier, and says in words what was changed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trilemma.data.containers import read_file
from trilemma.data.image_set import as_float
from trilemma.data.pictures import read_header
from trilemma.errors import ImageError
from trilemma.evaluation.predict import pixels_of


@dataclass(frozen=True)
class Picture:
    """An image for a classifier.

    Attributes:
        pixels: float32 ``[C, H, W]`` in [0, 1].
        note: what was done to the file, as a sentence.
    """

    pixels: Tensor
    note: str


def read_picture(path: str | Path, shape: tuple[int, int, int] | None) -> Picture:
    """Decodes an image file as ``trilemma predict`` does: cropped, resized and converted to the classifier's channels.

    Args:
        path: the file.
        shape: (C, H, W) of the classifier's images.

    Raises:
        DataError: no image, or one of too many pixels.
        ImageError: the classifier stores no image shape, or takes neither grey nor colour images.
    """
    path = Path(path)
    if shape is None:
        raise ImageError("this classifier stores no image shape; start the page with --size N")
    if shape[0] not in (1, 3):
        raise ImageError(f"this classifier takes images of {shape[0]} channels, which no image file has")
    data = read_file(path, path.name)
    height, width, colour = read_header(data, path.name)
    # A copy: Pillow's own pixels cannot be written to.
    pixels = as_float(torch.from_numpy(np.array(pixels_of(data, shape, path.name))))
    return Picture(pixels, _note(path.name, (height, width), colour, _has_alpha(data), shape))


def _has_alpha(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info


def _note(name: str, size: tuple[int, int], colour: bool, alpha: bool, shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    changes = []
    if alpha:
        changes.append("transparent parts made black")
    if size[0] * width != size[1] * height:
        changes.append("centre cropped")
    if size != (height, width):
        changes.append(f"resized to {width} x {height}")
    if colour and channels == 1:
        changes.append("colour converted to grey")
    if not colour and channels == 3:
        changes.append("grey repeated in three channels")
    return f"{name}, {size[1]:,} x {size[0]:,} pixels: {', '.join(changes) or 'used as it is'}."
