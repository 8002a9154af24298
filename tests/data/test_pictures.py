"""Pictures become pixels by the stated rules."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trilemma.data import pictures
from trilemma.data.image_files import most_common_size
from trilemma.data.pictures import decode, fit, read_header
from trilemma.errors import DataError


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_lossless_pixels_are_kept(build: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert read_header(build.png(pixels), "x") == (5, 7, True)
    assert np.array_equal(decode(build.png(pixels), (3, 5, 7), "x"), pixels.transpose(2, 0, 1))
    grey = pixels[:, :, 0]
    assert read_header(build.png(grey), "x") == (5, 7, False)
    assert np.array_equal(decode(build.png(grey), (1, 5, 7), "x"), grey[None])
    assert np.array_equal(decode(build.png(grey), (3, 5, 7), "x"), np.stack([grey] * 3))


def test_sixteen_bit_grey_is_rounded_to_eight(build: Any) -> None:
    values = np.array([[0, 128, 129, 65535], [257, 514, 32768, 40000]], np.uint16)
    expected = np.floor(values.astype(float) * 255 / 65535 + 0.5)
    assert read_header(build.png(values), "x") == (2, 4, False)
    assert np.array_equal(decode(build.png(values), (1, 2, 4), "x")[0], expected)


def test_alpha_is_composited_over_black(build: Any) -> None:
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], np.uint8)
    found = decode(build.png(pixels), (3, 1, 3), "x")
    assert found[:, 0, 0].tolist() == [200, 100, 50]
    assert found[:, 0, 1].tolist() == [0, 0, 0]
    assert np.abs(found[:, 0, 2] - np.array([200, 100, 50]) * 128 / 255).max() <= 1


def test_grey_with_alpha_stays_grey(build: Any) -> None:
    data = build.png(np.array([[[90, 255], [90, 0]]], np.uint8))
    assert read_header(data, "x") == (1, 2, False)
    assert decode(data, (1, 1, 2), "x").tolist() == [[[90, 0]]]


def test_palette_is_colour_and_its_transparent_entry_black() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert read_header(encoded(picture), "x") == (1, 2, True)
    assert decode(encoded(picture), (3, 1, 2), "x")[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    transparent = decode(encoded(picture, transparency=1), (3, 1, 2), "x")
    assert transparent[:, 0].T.tolist() == [[10, 20, 30], [0, 0, 0]]


def test_bilevel_and_cmyk_are_taken() -> None:
    assert decode(encoded(Image.new("1", (2, 2), 1)), (1, 2, 2), "x").tolist() == [[[255, 255], [255, 255]]]
    assert decode(encoded(Image.new("CMYK", (2, 2)), "TIFF"), (3, 2, 2), "x").min() == 255


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"dog/1\.tif: cannot be decoded as an image \(floating-point pixels\)"
    ):
        decode(encoded(Image.new("F", (2, 2)), "TIFF"), (1, 2, 2), "dog/1.tif")


def test_shrinking_takes_box_means_of_the_central_square() -> None:
    pixels = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6) * 10
    found = fit(Image.fromarray(pixels), (1, 2, 2))[0]
    centre = pixels[:, 1:5].astype(float)
    assert np.array_equal(found, centre.reshape(2, 2, 2, 2).mean((1, 3)))


def test_growing_is_bilinear() -> None:
    picture = Image.fromarray(np.array([[0, 100], [100, 200]], np.uint8))
    expected = np.asarray(picture.resize((4, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(fit(picture, (1, 4, 4))[0], expected)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["L", "RGB"]),
)
def test_fit_gives_the_shape_and_invents_no_values(
    width: int, height: int, w: int, h: int, mode: str
) -> None:
    picture = Image.new(mode, (width, height), 77 if mode == "L" else (77, 77, 77))
    found = fit(picture, (3, h, w))
    assert found.shape == (3, h, w)
    assert found.dtype == np.uint8
    assert (found == 77).all()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_or_a_clear_error(data: bytes) -> None:
    for read in (lambda: read_header(data, "cat/3.png"), lambda: decode(data, (3, 4, 4), "cat/3.png")):
        with pytest.raises(DataError, match=r"^cat/3\.png: cannot be decoded"):
            read()


def test_cut_image_is_an_error_that_names_it(build: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"t\.tar:train/cat/9\.png: cannot be decoded"):
        decode(build.png(pixels)[:2000], (3, 40, 40), "t.tar:train/cat/9.png")


def test_most_common_size_and_its_ties() -> None:
    assert most_common_size([(8, 8), (4, 4), (4, 4)]) == (4, 4)
    assert most_common_size([(8, 8), (4, 6), (6, 4)]) == (4, 6)


@pytest.fixture(params=["installed", "stand-in", "other pixels"])
def simplejpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """simplejpeg where it is installed; a stand-in that decodes with Pillow; one whose pixels differ."""
    if request.param == "installed":
        module: Any = pytest.importorskip("simplejpeg")
    else:
        module = StandIn(offset=request.param == "other pixels")
    monkeypatch.setattr(pictures, "simplejpeg", module)
    pictures._fast.cache_clear()
    yield module
    pictures._fast.cache_clear()


class StandIn:
    """The two functions of simplejpeg that are used."""

    def __init__(self, offset: bool) -> None:
        self.offset, self.decoded = offset, 0

    def decode_jpeg_header(self, data: bytes) -> tuple[int, int, str, str]:
        with Image.open(io.BytesIO(data)) as picture:
            colours = {"L": "Gray", "RGB": "YCbCr"}.get(picture.mode, "CMYK")
            return picture.height, picture.width, colours, "420"

    def decode_jpeg(self, data: bytes, colours: str) -> np.ndarray:
        self.decoded += 1
        with Image.open(io.BytesIO(data)) as picture:
            try:
                pixels = np.array(picture)
            except OSError as error:
                raise ValueError("truncated") from error
        return (pixels if pixels.ndim == 3 else pixels[:, :, None]) ^ np.uint8(self.offset)


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6


JPEG_OPTIONS: list[dict[str, Any]] = [
    *({"subsampling": subsampling, "quality": 75} for subsampling in (0, 1, 2)),
    {"subsampling": 2, "quality": 30, "progressive": True},
    {"subsampling": 2, "quality": 100, "optimize": True},
    {"restart_marker_blocks": 2},
    {"exif": ORIENTED},
    {"keep_rgb": True},
]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_fast_jpegs_have_the_pixels_of_pillow(simplejpeg: Any, mode: str) -> None:
    y, x = np.mgrid[:33, :47]
    smooth = np.stack([y * 5, x * 3, x + y], -1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, smooth.shape, np.uint8)
    for options, pixels in itertools.product(JPEG_OPTIONS, (noise, smooth, smooth[:1, :1], smooth[:9, :16])):
        data = encoded(Image.fromarray(pixels).convert(mode), "JPEG", **options)
        with Image.open(io.BytesIO(data)) as file:
            expected = np.asarray(file if mode == "L" else file.convert("RGB"))
        shape = (1 if mode == "L" else 3, *pixels.shape[:2])
        assert read_header(data, "x") == (*shape[1:], mode != "L")
        assert np.array_equal(decode(data, shape, "x"), np.atleast_3d(expected).transpose(2, 0, 1))
        assert np.array_equal(decode(data, (3, 8, 8), "x"), fit(Image.fromarray(expected), (3, 8, 8)))


def test_simplejpeg_is_used_if_its_pixels_are_those_of_pillow(simplejpeg: Any) -> None:
    assert pictures._fast() is not getattr(simplejpeg, "offset", False)
    if isinstance(simplejpeg, StandIn):
        simplejpeg.decoded = 0
        decode(encoded(Image.new("RGB", (8, 8)), "JPEG"), (3, 8, 8), "x")
        assert simplejpeg.decoded == (not simplejpeg.offset)


def test_a_damaged_jpeg_is_reported_as_by_pillow(simplejpeg: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    for count in (3, 100, len(data) // 2):
        with pytest.raises(DataError, match=r"x\.jpg: cannot be decoded as an image"):
            decode(data[:count], (3, 40, 40), "x.jpg")
