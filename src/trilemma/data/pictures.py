"""Decodes an image file to uint8 pixels, by these rules:

- An image is grey if it is stored as grey (1, 8 or 16 bits, with or without alpha); palettes and everything else are
  colour.
- 16-bit grey is converted by round(v * 255 / 65535); of 16-bit colour the high byte is used (as Pillow reads it).
- Alpha, or a transparent palette entry, is composited over black.
- To change the size, the centre is cropped to the target's aspect ratio (a square for a square target), then resized,
  with a box filter when it is shrunk and bilinearly when it is enlarged.
- Of an animation the first frame is used; EXIF rotation is not applied.

With the extra ``fast-jpeg``, grey and RGB JPEGs are decoded by simplejpeg, with the pixels of Pillow.
"""

from __future__ import annotations

import functools
import io
import math
import os
import threading
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trilemma.errors import DataError
from trilemma.limits import IMAGE_PIXELS

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Formats of Pillow that hold pictures and are decoded by Pillow itself, rather than by another program.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
# Number of first bytes by which Pillow recognises a format.
SIGNATURE_BYTES = 16
# Rows of so many pixels are converted at once, since intermediate values take many times the memory of the result.
_STRIP_PIXELS = 1 << 20
# Mean file size from which threads are faster. For smaller files the time is spent in the interpreter, not in Pillow.
_MIN_BYTES_FOR_THREADS = 10_000
# The filters of warnings are those of the whole process.
_WARNINGS = threading.Lock()
_GREY = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"))


@functools.cache
def endings() -> frozenset[str]:
    """The file name endings of :data:`FORMATS`, in small letters, with the dot."""
    return frozenset(
        ending for ending, format_ in Image.registered_extensions().items() if format_ in FORMATS
    )


def is_image(read: Callable[[int | None], bytes]) -> bool:
    """Whether the first bytes of a file are those of an image of :data:`FORMATS`, and its header can be read.

    Args:
        read: returns as many of the first bytes as its argument says, or all for ``None``.
    """
    checks = [Image.OPEN[name][1] for name in _formats()]
    first_bytes = read(SIGNATURE_BYTES)
    try:
        if not any(check is not None and check(first_bytes) for check in checks):
            return False
    # Pillow's readers raise many kinds of exceptions; all of them mean that it is no image.
    except Exception:
        return False
    data = read(None)
    try:
        with _open(data):
            return True
    except DataError:
        # An image, of which the size is an error when it is read.
        return True
    except Exception:
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """The :data:`FORMATS` that this Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    """The image of a file, not decoded yet.

    Raises:
        DataError: it has too many pixels.
        Exception: it is no image.
    """
    try:
        with _WARNINGS, warnings.catch_warnings():
            # Pillow warns of images that are refused below, and refuses larger ones.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError:
        raise DataError(IMAGE_PIXELS.excess(None)) from None
    _check_pixels(picture.height, picture.width)
    return picture


def _check_pixels(height: int, width: int) -> None:
    """Raises :class:`DataError` if an image has too many pixels."""
    if height * width > IMAGE_PIXELS.value:
        raise DataError(f"{width:,} x {height:,} pixels, {IMAGE_PIXELS.excess(None)}")


_JPEG_START = b"\xff\xd8\xff"
# The colour spaces of files that simplejpeg decodes; the others are decoded by Pillow.
_JPEG_COLOURS = ("Gray", "YCbCr", "RGB")


def _jpeg_header(data: bytes) -> tuple[int, int, bool] | None:
    """(height, width, whether it is colour) of a JPEG that :func:`_decode_jpeg` may decode, else ``None``."""
    if not data.startswith(_JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in _JPEG_COLOURS or height * width > IMAGE_PIXELS.value:
        return None
    return height, width, colours != "Gray"


def _decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels ``[H, W, C]`` of a JPEG, C 1 or 3; ``None`` if Pillow has to decode the file, or report its fault."""
    header = _jpeg_header(data)
    if header is None:
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB" if header[2] else "GRAY")
    except ValueError:
        return None
    return pixels


@functools.cache
def _fast() -> bool:
    """Whether JPEGs are decoded by simplejpeg: it gives the pixels that this Pillow gives, whose library may differ."""
    if simplejpeg is None:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (17, 19, 3), np.uint8)
    for options in ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "JPEG", **options)
        pixels = _decode_jpeg(stream.getvalue())
        if pixels is None or not np.array_equal(pixels, np.asarray(Image.open(stream))):
            return False
    return True


def read_header(data: bytes, where: str) -> tuple[int, int, bool]:
    """(height, width, whether it is colour) of an encoded image, without decoding it.

    Args:
        data: content of the file.
        where: the file, for messages.

    Raises:
        DataError: not an image that Pillow can read, or one of too many pixels.
    """
    try:
        if _fast() and (found := _jpeg_header(data)) is not None:
            return found
        with _open(data) as picture:
            return picture.height, picture.width, picture.mode not in _GREY
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    # Pillow's readers raise many kinds of exceptions; all of them mean an unreadable file.
    except Exception as error:
        raise _undecodable(where, error) from error


def decoding_threads(mean_bytes: float = math.inf) -> int:
    """The number of threads that decode encoded images of this mean size fastest, at most 8."""
    return min(os.cpu_count() or 1, 8) if mean_bytes >= _MIN_BYTES_FOR_THREADS else 1


def decode(data: bytes, shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    """Decodes an image to uint8 pixels ``[C, H, W]`` of ``shape``.

    Args:
        data: content of the file.
        shape: (C, H, W) of the result.
        where: the file, for messages.

    Raises:
        DataError: the image cannot be decoded, or has too many pixels.
    """
    try:
        if _fast() and (pixels := _decode_jpeg(data)) is not None:
            return _fit_pixels(pixels, shape)
        with _open(data) as picture:
            return fit(_plain(picture), shape)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    # Pillow's readers raise many kinds of exceptions; all of them mean an unreadable file.
    except Exception as error:
        raise _undecodable(where, error) from error


def _undecodable(where: str, error: Exception) -> DataError:
    """The error for a file that cannot be decoded."""
    # Pillow's message for an unknown format has the name of the in-memory buffer instead of the file.
    reason = "Pillow does not know its format" if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(f"{where}: cannot be decoded as an image ({reason}); replace or remove it")


def _plain(picture: Image.Image) -> Image.Image:
    """The image converted to mode L or RGB, 8 bits, opaque."""
    if picture.mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture
    rows = max(1, _STRIP_PIXELS // picture.width)
    if picture.height <= rows:
        return _plain_strip(picture)
    plain = Image.new("L" if picture.mode in _GREY else "RGB", picture.size)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        plain.paste(_plain_strip(strip), (0, top))
    return plain


def _plain_strip(picture: Image.Image) -> Image.Image:
    """:func:`_plain` of an image of few pixels."""
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


def _fit_pixels(pixels: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """:func:`fit` of the pixels ``[H, W, C]`` of an image."""
    height, width, channels = pixels.shape
    if (channels, height, width) == shape:
        return pixels.transpose(2, 0, 1)
    return fit(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels), shape)


def as_array(picture: Image.Image) -> NDArray[np.uint8]:
    """The pixels ``[C, H, W]`` of an image in its own size, grey (C = 1) or RGB.

    Raises:
        DataError: pixels that have no 8-bit equivalent.
    """
    try:
        plain = _plain(picture)
    except ValueError as error:
        raise _undecodable("image", error) from error
    return fit(plain, (1 if plain.mode == "L" else 3, picture.height, picture.width))


def fit(picture: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Crops and resizes an image of mode L or RGB; returns uint8 pixels of ``shape`` (C is 1, for L only, or 3)."""
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
