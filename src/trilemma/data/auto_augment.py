"""AutoAugment's CIFAR-10 policy (Cubuk et al. 2019, arXiv 1805.09501) on batches of float images.

For every image one of 25 pairs of operations is drawn; each operation of the pair is applied with its own probability
and magnitude. The operations are those of Pillow, on [0, 1] instead of 256 levels; operations that need discrete levels
round to 8 bits first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma import noise
from trilemma.data.image_set import luma
from trilemma.transfers import sent

# Images [n, C, H, W] in [0, 1] and magnitudes [n] to images of the same shape, independently for each image.
Operation = Callable[[Tensor, Tensor], Tensor]

# Pairs of operations: name, probability and magnitude (0 to 9) of each.
POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate-x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear-y", 0.5, 8), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalise", 0.9, 0)),
    (("shear-y", 0.2, 7), ("posterise", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalise", 0.6, 0), ("equalise", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("translate-x", 0.5, 8)),
    (("equalise", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate-y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarise", 0.5, 2), ("invert", 0.0, 0)),
    (("equalise", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalise", 0.2, 0), ("equalise", 0.6, 0)),
    (("colour", 0.9, 9), ("equalise", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarise", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarise", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate-y", 0.9, 9), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarise", 0.8, 3)),
    (("equalise", 0.8, 0), ("invert", 0.1, 0)),
    (("translate-y", 0.7, 9), ("autocontrast", 0.9, 0)),
)


def auto_augment(images: Tensor, seeds: Tensor) -> Tensor:
    """Applies the policy to images, with one draw per image.

    Args:
        images: float32 ``[N, C, H, W]`` in [0, 1], grey or RGB; not modified.
        seeds: int64 ``[N]``, one per image; the result of an image does not depend on its batch.

    Returns:
        float32 ``[N, C, H, W]`` in [0, 1].
    """
    # The random numbers are drawn on the CPU, where they are the same as on every device: seeds that are there already
    # need no synchronisation, others one for all operations.
    choice, *draws = noise.uniform(seeds.cpu(), 0, (5,)).unbind(1)
    pairs = (choice * len(POLICY)).long()
    images = images.clone()
    for slot, (draw, sign) in enumerate(((draws[0], draws[1]), (draws[2], draws[3]))):
        chosen = _PROBABILITIES[pairs, slot] > draw
        for number, name in enumerate(OPERATIONS):
            index = (chosen & (_NUMBERS[pairs, slot] == number)).nonzero().squeeze(1)
            if not len(index):
                continue
            magnitudes = _MAGNITUDES[pairs[index], slot]
            if name in _SIGNED:
                magnitudes = torch.where(sign[index] < 0.5, -magnitudes, magnitudes)
            index = sent(index, images.device)
            images[index] = OPERATIONS[name](images[index], sent(magnitudes, images.device))
    return images


def _levels(images: Tensor) -> Tensor:
    """Images rounded to 8-bit levels, int64 0 to 255."""
    return (images * 255).round().long()


def _grey(images: Tensor) -> Tensor:
    """Images converted to grey, ``[n, 1, H, W]`` in [0, 1]; converted colour is rounded to 8-bit levels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (luma(images) * 255).round() / 255


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _blend(degenerate: Tensor, images: Tensor, magnitudes: Tensor) -> Tensor:
    """Interpolates from ``degenerate`` (magnitude -1) to ``images`` (0), and extrapolates beyond; clipped to [0, 1]."""
    return (degenerate + _per_image(1 + magnitudes) * (images - degenerate)).clamp(0.0, 1.0)


def brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Changes the brightness: blends with black."""
    return _blend(torch.zeros_like(images), images, magnitudes)


def colour(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Changes the colour saturation: blends with the grey image."""
    return _blend(_grey(images).expand_as(images), images, magnitudes)


def contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Changes the contrast: blends with the image's mean grey level."""
    mean = (_grey(images).mean((1, 2, 3), keepdim=True) * 255 + 0.5).floor() / 255
    return _blend(mean.expand_as(images), images, magnitudes)


def sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Changes the sharpness: blends with the image smoothed over 3x3 pixels (border pixels are not smoothed)."""
    channels = images.shape[1]
    kernel = images.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5.0
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=channels)
    return _blend(smooth, images, magnitudes)


def posterise(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Keeps the highest ``magnitudes`` bits of each 8-bit level."""
    step = _per_image((2 ** (8 - magnitudes)).long())
    return (_levels(images) // step * step).to(images) / 255


def solarise(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Inverts pixels whose 8-bit level is at least ``magnitudes``."""
    return torch.where(_levels(images) >= _per_image(magnitudes), 1 - images, images)


def invert(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Inverts all pixels; ``magnitudes`` is not used."""
    return 1 - images


def autocontrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Stretches each channel to [0, 1]; a constant channel is unchanged. ``magnitudes`` is not used."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (images - low) / span.clamp_min(1e-6), images).clamp(0.0, 1.0)


def equalise(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Equalises the histogram of each channel's 8-bit levels; ``magnitudes`` is not used."""
    levels = _levels(images).flatten(2)
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    equal = table.gather(2, levels).view(images.shape).to(images) / 255
    return torch.where(step[..., None] > 0, equal, images)


def _transform(images: Tensor, matrix: list[list[Tensor]]) -> Tensor:
    """Applies an affine transform with nearest-neighbour sampling; pixels from outside the image are black.

    ``matrix`` is 2x3 with entries ``[n]`` and maps the centre of an output pixel to its input position.
    """
    count, channels, height, width = images.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) + 0.5,
        torch.arange(width, device=images.device) + 0.5,
        indexing="ij",
    )
    column, row = (
        (a[:, None, None] * x + b[:, None, None] * y + c[:, None, None]).floor().long() for a, b, c in matrix
    )
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    flat = index.view(count, 1, -1).expand(count, channels, -1)
    sampled = images.flatten(2).gather(2, flat).view(images.shape)
    return sampled.masked_fill(~inside[:, None], 0.0)


def _affine(images: Tensor, magnitudes: Tensor, **entries: Tensor) -> Tensor:
    """:func:`_transform` by the identity matrix with some of its ``entries``, named ``a b c / d e f``, replaced."""
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    a, b, c, d, e, f = (entries.get(name, one if name in "ae" else zero) for name in "abcdef")
    return _transform(images, [[a, b, c], [d, e, f]])


def shear_x(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Shears horizontally about the upper left corner."""
    return _affine(images, magnitudes, b=magnitudes)


def shear_y(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Shears vertically about the upper left corner."""
    return _affine(images, magnitudes, d=magnitudes)


def translate_x(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Translates horizontally by whole pixels; ``magnitudes`` are fractions of the width."""
    return _affine(images, magnitudes, c=(magnitudes * images.shape[3]).trunc())


def translate_y(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Translates vertically by whole pixels; ``magnitudes`` are fractions of the height."""
    return _affine(images, magnitudes, f=(magnitudes * images.shape[2]).trunc())


def rotate(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Rotates counter-clockwise about the centre; ``magnitudes`` are degrees."""
    height, width = images.shape[2:]
    cosine, sine = magnitudes.deg2rad().cos(), -magnitudes.deg2rad().sin()
    c = width / 2 - cosine * (width / 2) - sine * (height / 2)
    f = height / 2 + sine * (width / 2) - cosine * (height / 2)
    return _affine(images, magnitudes, a=cosine, b=sine, c=c, d=-sine, e=cosine, f=f)


OPERATIONS: dict[str, Operation] = {
    "shear-x": shear_x,
    "shear-y": shear_y,
    "translate-x": translate_x,
    "translate-y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "colour": colour,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterise": posterise,
    "solarise": solarise,
    "autocontrast": autocontrast,
    "equalise": equalise,
    "invert": invert,
}
# Operations whose magnitude gets a random sign.
_SIGNED = frozenset(list(OPERATIONS)[:9])
# The strength at magnitude 9, in the unit of the operation; smaller magnitudes scale linearly.
_STRONGEST = {
    "shear-x": 0.3, "shear-y": 0.3, "translate-x": 150 / 331, "translate-y": 150 / 331, "rotate": 30.0,
    "brightness": 0.9, "colour": 0.9, "contrast": 0.9, "sharpness": 0.9,
}  # fmt: skip


def _strength(name: str, magnitude: int) -> float:
    """Converts a magnitude from 0 to 9 to the unit of the operation."""
    # The number of bits to keep.
    if name == "posterise":
        return 8 - round(magnitude * 4 / 9)
    # The lowest level that is inverted.
    if name == "solarise":
        return 255 - magnitude * 255 / 9
    return _STRONGEST.get(name, 0.0) * magnitude / 9


_NUMBERS = torch.tensor([[list(OPERATIONS).index(name) for name, _, _ in pair] for pair in POLICY])
_PROBABILITIES = torch.tensor([[probability for _, probability, _ in pair] for pair in POLICY])
_MAGNITUDES = torch.tensor([[_strength(name, magnitude) for name, _, magnitude in pair] for pair in POLICY])
