from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.errors import ConfigError, ImageError


def test_normalisation_is_owned_by_the_classifier(toy) -> None:
    clf = toy.mlp(shape=(3, 4, 4))
    images = toy.images(shape=(3, 4, 4))
    by_hand = clf.network((images - 0.5) / 0.25)
    torch.testing.assert_close(clf(images), by_hand)
    np.testing.assert_allclose(clf(images).detach(), toy.logits64(clf, images), atol=1e-5)


def test_each_channel_has_its_own_mean_and_std() -> None:
    clf = Classifier(nn.Flatten(), 12, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0])
    images = torch.full((1, 3, 2, 2), 0.5)
    expected = torch.tensor([0.4, 0.15, 0.05]).repeat_interleave(4)
    torch.testing.assert_close(clf(images)[0], expected)


def test_without_normalisation_the_network_sees_the_images() -> None:
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(Classifier(nn.Flatten(), 4)(images), images.flatten(1))


NAN = torch.full((2, 1, 4, 4), 0.5)
NAN[1, 0, 2, 2] = float("nan")


@pytest.mark.parametrize(
    ("images", "found", "remedy"),
    [
        (torch.full((2, 1, 4, 4), 200.0), "[200, 200], outside [0, 1]", "divide by 255"),
        (torch.full((2, 1, 4, 4), -0.5), "[-0.5, -0.5], outside [0, 1]", "pass images in [0, 1]"),
        (torch.full((2, 1, 4, 4), 1.001), "[1.001, 1.001], outside [0, 1]", "pass images in [0, 1]"),
        (torch.full((2, 1, 4, 4), float("inf")), "outside [0, 1]", "divide by 255|pass images"),
        (NAN, "some values are NaN", "check how they were decoded or generated"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "torch.uint8 given", "integers: .float() / 255"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.float16), "torch.float16 given", "pass a float32 tensor"),
        (np.zeros((2, 1, 4, 4)), "ndarray given", "pass a float32 tensor"),
        (torch.zeros(2, 3, 4, 4), "[3, 4, 4] per image given", "takes [1, 4, 4] (C, H, W); convert channels or resize"),
        (torch.zeros(2, 1, 5, 4), "[1, 5, 4] per image given", "takes [1, 4, 4] (C, H, W); convert channels or resize"),
        (torch.zeros(1, 4, 4), "shape [1, 4, 4] given", "pass [N, C, H, W] (one image: image[None])"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_taken_get_one_line_that_says_what_to_do(
    toy, images, found: str, remedy: str
) -> None:
    clf = toy.mlp()
    for door in (clf, clf.check):
        with pytest.raises(ImageError) as error:
            door(images)
        line = str(error.value)
        assert found in line
        assert any(part in line for part in remedy.split("|")), line
        assert "\n" not in line


def test_rounding_beyond_the_range_is_tolerated(toy) -> None:
    images = toy.images().round() * (1 + 1e-4) - 5e-5
    assert images.min() < 0 and images.max() > 1
    assert toy.mlp()(images).shape == (6, 3)


def test_channels_are_checked_even_where_the_size_is_free() -> None:
    clf = Classifier(nn.Flatten(), 12, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ImageError, match=r"takes \[3, 2, 2\]"):
        clf(torch.zeros(1, 1, 2, 2))


def test_inner_loops_may_leave_the_range_but_not_the_shape(toy) -> None:
    clf = toy.mlp()
    assert clf.logits(toy.images() + 5).shape == (6, 3)
    with pytest.raises(ImageError):
        clf.logits(torch.zeros(2, 3, 4, 4))


def test_double_precision_images_are_taken(toy) -> None:
    clf = toy.mlp()
    torch.testing.assert_close(clf(toy.images().double()), clf(toy.images()))


def test_no_images_give_no_logits(toy) -> None:
    assert toy.mlp()(torch.empty(0, 1, 4, 4)).shape == (0, 3)


def test_logits_are_float32_whatever_the_network_computes_in(toy) -> None:
    clf = toy.mlp().bfloat16()
    assert clf(toy.images()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5]}, "give both mean and std, or neither"),
        ({"mean": [0.5], "std": [0.0]}, "every std must be above 0"),
        ({"class_names": ["a"]}, "1 class names for 10 classes"),
    ],
)
def test_a_classifier_that_makes_no_sense_is_refused(arguments, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Classifier(nn.Flatten(), 10, **arguments)


def test_a_classifier_prints_what_it_is(toy) -> None:
    text = repr(toy.mlp(threat=trilemma.Threat("linf", "8/255")))
    assert "num_classes=3, image_shape=1x4x4, threat=linf 8/255" in text


def test_an_exact_radius_and_the_public_names_are_one_import_away() -> None:
    for name in trilemma.__all__:
        assert getattr(trilemma, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = trilemma.nothing
