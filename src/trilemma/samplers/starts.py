"""Starting images of chains: noise, class Gaussians, class PCA, real images or phase-scrambled ones.

A start is a function of a :class:`StartContext` (image shape, training images, stored statistics). It returns a
function that makes images from labels and seeds, so that statistics are fitted once. Training uses
:class:`TrainingStarts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import check_range, check_returned
from trilemma.config.plug_ins import call_registered
from trilemma.config.registry import STARTS
from trilemma.data.image_set import ImageSet
from trilemma.data.outlier_images import OutsideImages
from trilemma.data.statistics import ClassGaussian, ClassPCA, GaussianBank
from trilemma.errors import ConfigError, nearest

# Images per class for a fitted PCA: about one second per class at 32x32, and more than the directions that hold 99 % of
# the variance.
PCA_IMAGES = 1_000
# Added to the seed of the starts, so that they share no random numbers with the method or with other processes.
SEED_OFFSET = 500_000

# From labels, int64 [N], and seeds, int64 [N], to images [N, C, H, W] in [0, 1].
DrawStarts = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StartContext:
    """The inputs of a start.

    Attributes:
        name: name of the start, for messages.
        image_shape: (C, H, W).
        device: device of the images.
        data: training images, or ``None``.
        pca: class PCA stored with the classifier, or ``None``.
    """

    name: str
    image_shape: tuple[int, int, int]
    device: torch.device | str
    data: ImageSet | None = None
    pca: ClassPCA | None = None

    def training_images(self) -> ImageSet:
        """Returns the training images.

        Raises:
            ConfigError: there are none.
        """
        if self.data is None:
            raise ConfigError(f"start: {self.name!r} needs training images; pass data=...")
        return self.data

    def class_pca(self) -> ClassPCA:
        """Returns the stored class PCA, or one fitted to the training images.

        Raises:
            ConfigError: there is neither a stored PCA nor training images.
        """
        if self.pca is not None:
            return self.pca
        if self.data is None:
            raise ConfigError(
                f"start: {self.name!r} needs class statistics; pass data=... or a classifier saved with them"
            )
        return ClassPCA.fit(self.data, max_images_per_class=PCA_IMAGES).to(self.device)


def uniform(context: StartContext) -> DrawStarts:
    """U(0, 1) pixels."""
    return lambda labels, seeds: noise.uniform(seeds, 0, context.image_shape)


def gaussian(context: StartContext, std: float = 0.25) -> DrawStarts:
    """N(1/2, std^2) pixels, clipped to [0, 1]."""
    return lambda labels, seeds: (0.5 + std * noise.normal(seeds, 0, context.image_shape)).clamp(0.0, 1.0)


def class_mean_noise(context: StartContext, std: float = 0.3) -> DrawStarts:
    """The mean image of the class plus N(0, std^2), clipped to [0, 1]."""
    means = context.class_pca().means.view(-1, *context.image_shape)

    def draw(labels: Tensor, seeds: Tensor) -> Tensor:
        centres = means.to(seeds.device)[labels]
        return (centres + std * noise.normal(seeds, 0, context.image_shape).to(centres)).clamp(0.0, 1.0)

    return draw


def class_gaussian(context: StartContext) -> DrawStarts:
    """Draws from the Gaussian with the mean and covariance of the class's training images (Yang and Ji 2021)."""
    return ClassGaussian(context.training_images(), context.device).sample


def class_pca(context: StartContext) -> DrawStarts:
    """The class mean plus its principal components with normal coefficients (WEAT, arXiv 2407.06315)."""
    return context.class_pca().sample


def data(context: StartContext) -> DrawStarts:
    """A random training image of each label's class."""
    images = context.training_images()
    class_indices = [(images.labels == k).nonzero().squeeze(1) for k in range(images.num_classes)]

    def draw(labels: Tensor, seeds: Tensor) -> Tensor:
        u = noise.uniform(seeds, 0, (1,)).view(-1).cpu()
        drawn = [class_indices[int(k)][int(u[i] * len(class_indices[int(k)]))] for i, k in enumerate(labels)]
        return images.float_images(torch.stack(drawn), device=labels.device)

    return draw


def phase_scrambled_data(context: StartContext) -> DrawStarts:
    """Training images of any class with random Fourier phases (see :mod:`trilemma.data.outlier_images`)."""
    outside = OutsideImages("phase-scrambled", context.training_images(), context.device)
    return lambda labels, seeds: outside(seeds)


def create_start(context: StartContext) -> DrawStarts:
    """Returns the draw function of the registered start ``context.name``.

    Raises:
        ConfigError: unknown name, missing training images or statistics, or a function of another signature; when
            drawing, images of another shape.
        ImageError: when drawing, images outside [0, 1].
    """
    if context.name not in STARTS:
        names = list(STARTS.rows())
        raise ConfigError(
            f"start: unknown start {context.name!r}.{nearest(context.name, names)} Starts: {', '.join(names)}"
        )
    what = f"start {context.name!r}"
    built_in = STARTS.row(context.name).built_in
    draw_images: DrawStarts = call_registered(what, STARTS.get(context.name), context)

    def draw(labels: Tensor, seeds: Tensor) -> Tensor:
        drawn = call_registered(f"{what}, its draw function", draw_images, labels, seeds)
        images = check_returned(what, drawn, (len(labels), *context.image_shape))
        # one value to wait for on an accelerator, so only where it is not known
        if not built_in:
            check_range(images)
        return images

    return draw


def make_start(
    name: str,
    labels: Tensor,
    seeds: Tensor,
    image_shape: tuple[int, int, int],
    data: ImageSet | None,
    pca: ClassPCA | None,
) -> Tensor:
    """Returns starting images ``[N, C, H, W]`` for ``labels``; fits the statistics of the start first.

    Args:
        name: a name of the registry ``STARTS``.
        labels, seeds: int64 ``[N]``.
        image_shape: (C, H, W).
        data: training images; needed by ``class-gaussian``, ``data`` and ``phase-scrambled``.
        pca: class PCA; needed by ``class-pca`` and ``class-mean-noise`` if ``data`` is ``None``.

    Raises:
        ConfigError: see :func:`create_start`.
    """
    return create_start(StartContext(name, image_shape, labels.device, data, pca))(labels, seeds)


class TrainingStarts:
    """Draws starting images of chains during training; fast, and resumed bit for bit from its state.

    Args:
        name: a name of the registry ``STARTS``.
        data: training images.
        seed: seed of the starting images.
        device: device of the starting images.
    """

    def __init__(self, name: str, data: ImageSet, seed: int, device: torch.device | str) -> None:
        self.generator = torch.Generator().manual_seed(seed + SEED_OFFSET)
        self.bank = GaussianBank(ClassGaussian(data, device), seed) if name == "class-gaussian" else None
        self.draw = None if self.bank else create_start(StartContext(name, data.image_shape, device, data))

    def __call__(self, labels: Tensor) -> Tensor:
        """Returns starting images ``[n, C, H, W]`` for ``labels``, int64 ``[n]``."""
        if self.bank is not None:
            return self.bank.draw(labels)
        assert self.draw is not None
        return self.draw(labels, noise.image_seeds(len(labels), self.generator, labels.device))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the random numbers."""
        return {
            "generator": self.generator.get_state(),
            "bank": None if self.bank is None else self.bank.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"])
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
