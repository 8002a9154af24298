"""Images from outside the training distribution: another data set, or images synthesised from the training images.

Synthesised images are a substitute where no natural images of other classes are available. Phase-scrambled images have
the spectrum and the colours of training images, mixed images their pixel statistics at low contrast; neither shows an
object.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from trilemma import noise
from trilemma.data.image_set import ImageSet, as_float, luma, source_name
from trilemma.data.sources import load_unlabelled
from trilemma.errors import DataError

# A mixed image is the mean of this many training images.
MIXED = 4
# Largest number of images stored on the device: the size of CIFAR-10.
LIMIT = 50_000
# Weights of red, green and blue in the luma (ITU-R 601), in 16 bits, as Pillow has them.
LUMA_16_BITS = (19595, 38470, 7471)


def phase_scrambled(images: Tensor, seeds: Tensor) -> Tensor:
    """Randomises the Fourier phases of images and clips to [0, 1]; mean and amplitudes are kept.

    The same random phase is added to all channels, so that the phase differences between channels, and with them the
    colours, are kept.

    Args:
        images: float32 ``[N, C, H, W]`` in [0, 1].
        seeds: int64 ``[N]``, one per image.
    """
    size = images.shape[2:]
    # The phases of real-valued noise have the symmetry that makes the inverse transform real.
    phase = torch.fft.rfft2(noise.normal(seeds, 0, (1, *size))).angle()
    # Frequency 0 is the mean, which is kept.
    phase[..., 0, 0] = 0.0
    rotated = torch.fft.rfft2(images) * torch.polar(torch.ones_like(phase), phase)
    scrambled: Tensor = torch.fft.irfft2(rotated, s=size)
    return scrambled.clamp(0.0, 1.0)


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Converts float images to 1 or 3 ``channels``: colour to its luma, grey by repetition."""
    if images.shape[1] == channels:
        return images
    return luma(images) if channels == 1 else images.expand(-1, channels, -1, -1)


def convert_channels(images: ImageSet, channels: int) -> ImageSet:
    """Images with 1 or 3 ``channels``: grey is repeated, colour converted to luma as Pillow does it; 8 bits."""
    if images.image_shape[0] == channels or {images.image_shape[0], channels} != {1, 3}:
        return images
    if channels == 3:
        pixels, words = images.images.expand(-1, 3, -1, -1), "grey repeated in three channels"
    else:
        weights = torch.tensor(LUMA_16_BITS)[:, None, None]
        pixels = ((images.images * weights).sum(1, keepdim=True) + (1 << 15) >> 16).to(torch.uint8)
        words = "colour converted to grey"
    selection = ", ".join(filter(None, (images.selection, words)))
    return dataclasses.replace(images, images=pixels, selection=selection)


class OutsideImages:
    """Random images from outside the training distribution; every call draws new ones.

    Args:
        name: ``phase-scrambled`` or ``mixed`` (synthesised from the training images), the name of a data set, or the
            path of a folder, archive or npz of images in any arrangement
            (:func:`trilemma.data.sources.load_unlabelled`). Images of other data are resized to the size of the
            training images and converted to their number of channels.
        data: the training images.
        device: device of the stored images and of the result.

    Raises:
        DataError: no such data, the training data themselves, or training images that are not square or have other than
            1 or 3 channels, to which other data cannot be converted.
    """

    def __init__(self, name: str, data: ImageSet, device: torch.device | str) -> None:
        self.name = name
        self.channels = data.image_shape[0]
        source = data if name in ("phase-scrambled", "mixed") else _other_images(name, data)
        self._images = (source.first(LIMIT) if len(source) > LIMIT else source).images.to(device)

    def __call__(self, seeds: Tensor) -> Tensor:
        """Random images ``[N, C, H, W]`` in [0, 1], one for each seed (int64 ``[N]``)."""
        if self.name == "mixed":
            return torch.stack([self._draw(noise.derive(seeds, k)) for k in range(MIXED)]).mean(0)
        drawn = self._draw(noise.derive(seeds, 0))
        return phase_scrambled(drawn, noise.derive(seeds, 1)) if self.name == "phase-scrambled" else drawn

    def _draw(self, seeds: Tensor) -> Tensor:
        """A random stored image for each seed, ``[N, C, H, W]`` in [0, 1]."""
        count = len(self._images)
        index = (noise.uniform(seeds, 0, (1,))[:, 0] * count).long().clamp_max(count - 1)
        return in_channels(as_float(self._images[index]), self.channels)


def _other_images(name: str, data: ImageSet) -> ImageSet:
    """The images of another data set, resized to those of ``data``; raises :class:`DataError` if it cannot be used."""
    channels, height, width = data.image_shape
    if height != width or channels not in (1, 3):
        raise DataError(
            f"{name}: images of other data are made grey or RGB and square, but the training images are "
            f"{channels}x{height}x{width}; use phase-scrambled or mixed"
        )
    other = load_unlabelled(name, "train", height)
    if source_name(other.name) == source_name(data.name):
        raise DataError(
            f"{name}: these are the training data, not images from outside the training distribution; give other data"
        )
    return other
