"""One encoded picture to uint8 pixels, by stated rules.

- Grey is what is stored as grey (1, 8, 16 bits, with or without alpha); palettes and everything else are
  colour.
- 16-bit grey becomes round(v * 255 / 65535); 16-bit colour its high byte (as Pillow reads it).
- Alpha, or a transparent palette entry, is composited over black.
- Another size than asked for: the centre is cropped to the target's aspect ratio (a square for a square
  target), then resized, with a box filter when it shrinks and bilinearly when it grows.
- The first frame of an animation; EXIF rotation is not applied, so pixels stay where the file has them.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trilemma.errors import DataError

EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
_GREY = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"))


def read_header(data: bytes, where: str) -> tuple[int, int, bool]:
    """(height, width, is it colour) of an encoded picture, without decoding it.

    Raises:
        DataError: not a picture; the message names ``where``.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.height, picture.width, picture.mode not in _GREY
    except Exception as error:  # Pillow's readers raise many kinds; all of them mean an unreadable file
        raise _undecodable(where, error) from error


def decode(data: bytes, shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    """Pixels uint8 ``[C, H, W]`` of an encoded picture, fitted to ``shape``.

    Raises:
        DataError: it cannot be decoded; the message names ``where``.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return fit(_plain(picture), shape)
    except Exception as error:  # as above
        raise _undecodable(where, error) from error


def _undecodable(where: str, error: Exception) -> DataError:
    # Pillow's own words for an unknown format name our buffer instead of the file
    reason = (
        "its format is none that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
    )
    return DataError(f"{where}: cannot be decoded as an image ({reason}); replace or remove it")


def _plain(picture: Image.Image) -> Image.Image:
    """The picture as mode L or RGB, 8 bits, opaque."""
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values beyond 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating-point pixels")
    grey = picture.mode in _GREY
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
        return opaque.getchannel("R") if grey else opaque.convert("RGB")
    return picture.convert("L" if grey else "RGB")


def fit(picture: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An L or RGB picture as uint8 ``[C, H, W]`` of exactly ``shape`` (C is 1 for L only, or 3)."""
    channels, height, width = shape
    if picture.size != (width, height):
        scale = min(picture.width / width, picture.height / height)
        crop_width, crop_height = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
        filter_ = Image.Resampling.BOX if scale >= 1 else Image.Resampling.BILINEAR
        box = (left, top, left + crop_width, top + crop_height)
        picture = picture.resize((width, height), filter_, box=box)
    pixels = np.asarray(picture.convert("RGB") if channels == 3 else picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
