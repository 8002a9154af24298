"""Images from outside the training distribution: other data, or what is made of the training images.

A stand-in for natural images of other things, where none are at hand: phase-scrambled training images keep the
spectrum and the colours of real ones, mixed ones their pixel statistics at low contrast; neither shows an object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import noise
from trilemma.config.registry import DATASETS
from trilemma.data.image_set import ImageSet, as_float, source_name
from trilemma.data.sources import load_images
from trilemma.errors import DataError

# Training images that one mixed image is the mean of.
MIXED = 4
# At most this many images are kept on the device: as many as CIFAR-10 has.
LIMIT = 50_000
# Brightness of red, green and blue (ITU-R 601).
LUMA = (0.299, 0.587, 0.114)


def phase_scrambled(images: Tensor, seeds: Tensor) -> Tensor:
    """The images with random Fourier phases, clipped to [0, 1]; the mean and the amplitudes stay.

    One phase per frequency is added to all channels, so that their phase differences, which make the colours, stay.

    Args:
        images: float32 ``[N, C, H, W]`` in [0, 1].
        seeds: int64 ``[N]``, one per image.
    """
    size = images.shape[2:]
    # the phases of real noise have the symmetry that makes the result real
    phase = torch.fft.rfft2(noise.normal(seeds, 0, (1, *size))).angle()
    phase[..., 0, 0] = 0.0  # the mean
    turned = torch.fft.rfft2(images) * torch.polar(torch.ones_like(phase), phase)
    scrambled: Tensor = torch.fft.irfft2(turned, s=size)
    return scrambled.clamp(0.0, 1.0)


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Float images with 1 or 3 channels as such with ``channels``: colour becomes its brightness, grey is repeated."""
    if images.shape[1] == channels:
        return images
    grey = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    return grey if channels == 1 else images.expand(-1, channels, -1, -1)


class OutsideImages:
    """Random images from outside the training distribution, made fresh at every call.

    Args:
        name: ``phase-scrambled`` or ``mixed`` training images, or whose images to take: a data set's name or the
            path of an image folder, archive or npz (see :func:`trilemma.data.load_images`). They are resized to the
            training images, grey becomes colour and colour grey.
        data: the training images.
        device: where images live and are made.

    Raises:
        DataError: no such data, the training data themselves, or training images that are not square, which others
            are not resized to.
    """

    def __init__(self, name: str, data: ImageSet, device: torch.device | str) -> None:
        self.name = name
        self.channels = data.image_shape[0]
        source = data if name in ("phase-scrambled", "mixed") else _other_images(name, data)
        self._images = (source.first(LIMIT) if len(source) > LIMIT else source).images.to(device)

    def __call__(self, seeds: Tensor) -> Tensor:
        """``[N, C, H, W]`` in [0, 1] for int64 ``[N]`` seeds, one per image."""
        if self.name == "mixed":
            return torch.stack([self._draw(noise.derive(seeds, k)) for k in range(MIXED)]).mean(0)
        drawn = self._draw(noise.derive(seeds, 0))
        return phase_scrambled(drawn, noise.derive(seeds, 1)) if self.name == "phase-scrambled" else drawn

    def _draw(self, seeds: Tensor) -> Tensor:
        """A random image for each seed."""
        count = len(self._images)
        places = (noise.uniform(seeds, 0, (1,))[:, 0] * count).long().clamp_max(count - 1)
        return in_channels(as_float(self._images[places]), self.channels)


def _other_images(name: str, data: ImageSet) -> ImageSet:
    channels, height, width = data.image_shape
    if height != width or channels not in (1, 3):
        raise DataError(
            f"{name}: images of another source are made grey or RGB and square, but the training images are "
            f"{channels}x{height}x{width}; use phase-scrambled or mixed"
        )
    other = load_images(name, split="train" if name in DATASETS else "all", size=height)
    if source_name(other.name) == source_name(data.name):
        raise DataError(
            f"{name}: these are the training data, so nothing in them is outside; give other images"
        )
    return other
