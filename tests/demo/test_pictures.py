"""Uploaded files become the image that ``trilemma predict`` would read, and a sentence says what was changed."""

from __future__ import annotations

import re

import pytest
import torch

from trilemma.demo.pictures import read_picture
from trilemma.errors import DataError, ImageError
from trilemma.evaluation.predict import open_items

GREY, COLOUR = (1, 8, 8), (3, 8, 8)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("grey", GREY, "8 x 8 pixels: used as it is"),
        ("grey", COLOUR, "grey repeated in three channels"),
        ("colour", GREY, "colour converted to grey"),
        ("colour", COLOUR, "used as it is"),
        ("rgba", GREY, "transparent parts made black, colour converted to grey"),
        ("wide", GREY, "40 x 20 pixels: centre cropped, resized to 8 x 8"),
        ("long", GREY, "10,000 x 10 pixels: centre cropped, resized to 8 x 8"),
    ],
)
def test_the_pixels_are_those_of_predict_and_the_note_says_what_was_done(files, toy, name, shape, words):
    read = read_picture(files[name], shape)
    _, pixels = open_items(files[name]).read(toy.mlp(shape=shape))
    assert torch.equal(read.pixels, pixels[0]) and read.pixels.shape == shape
    assert read.note == f"{name}.png, {words}." if words[0].isdigit() else words in read.note


@pytest.mark.parametrize(
    ("name", "shape", "error", "words"),
    [
        ("text", GREY, DataError, "notes.png: cannot be decoded as an image"),
        ("huge", GREY, DataError, "huge.png: 10,000 x 10,000 pixels, more than the 50 million"),
        ("grey", None, ImageError, "stores no image shape; start the page with --size N"),
        ("grey", (2, 8, 8), ImageError, "takes images of 2 channels"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(files, name, shape, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        read_picture(files[name], shape)
    assert "\n" not in str(caught.value)
