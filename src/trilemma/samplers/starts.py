"""Starting images of chains: noise, class Gaussians, PCA, real images, phase-scrambled ones, or chains of training.

A start is a function of a :class:`StartContext` (image shape, training images, stored statistics). It returns a
function that makes images from labels and seeds, so that statistics are fitted once. Training uses
:class:`TrainingStarts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import check_range, check_returned
from trilemma.config.plug_ins import call_registered
from trilemma.config.registry import STARTS
from trilemma.config.starts import StartPart, parse_start
from trilemma.data.image_set import ImageSet
from trilemma.data.outlier_images import OutsideImages
from trilemma.data.statistics import ClassGaussian, ClassPCA, ClassPCAOnDemand, GaussianBank, LocalPCA
from trilemma.errors import ConfigError, nearest
from trilemma.samplers.replay_buffer import load_chains
from trilemma.transfers import sent
from trilemma.units import count

# Images per class for a fitted PCA: about one second per class at 32x32, and more than the directions that hold 99 % of
# the variance.
PCA_IMAGES = 1_000
# Memory up to which the components of all classes are computed at once: enough for ten classes of 32x32x3. Beyond it,
# those of a class are computed when it is drawn.
PCA_BYTES = 128_000_000
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
        chains: chains of a finished run, or its folder, classifier file or file of chains; or ``None``.
    """

    name: str
    image_shape: tuple[int, int, int]
    device: torch.device | str
    data: ImageSet | None = None
    pca: ClassPCA | None = None
    chains: ImageSet | str | Path | None = None

    def training_images(self) -> ImageSet:
        """Returns the training images.

        Raises:
            ConfigError: there are none.
        """
        if self.data is None:
            raise ConfigError(
                f"start: {self.name!r} needs training images; pass data=... (on the command line --data)"
            )
        return self.data

    def class_pca(self) -> ClassPCA | ClassPCAOnDemand:
        """Returns the stored class PCA, or that of the training images.

        Raises:
            ConfigError: there is neither a stored PCA nor training images.
        """
        if self.pca is not None:
            return self.pca
        if self.data is None:
            raise ConfigError(
                f"start: {self.name!r} needs class statistics; pass data=... (on the command line --data) or a "
                "classifier saved with them"
            )
        pixels = math.prod(self.image_shape)
        if 4 * self.data.num_classes * pixels * min(PCA_IMAGES, pixels, len(self.data)) > PCA_BYTES:
            return ClassPCAOnDemand(self.data, max_images_per_class=PCA_IMAGES, device=self.device)
        return ClassPCA.fit(self.data, max_images_per_class=PCA_IMAGES).to(self.device)

    def replay_chains(self) -> ImageSet:
        """Returns the chains of training.

        Raises:
            ConfigError: there are none.
        """
        if self.chains is None:
            raise ConfigError(
                f"start: {self.name!r} needs the chains of a finished run; pass chains=RUN (on the command line, "
                "generate from the run folder)"
            )
        return self.chains if isinstance(self.chains, ImageSet) else load_chains(self.chains)


def uniform(context: StartContext) -> DrawStarts:
    """U(0, 1) pixels."""
    return lambda labels, seeds: noise.uniform(seeds, 0, context.image_shape)


def gaussian(context: StartContext, std: float = 0.25) -> DrawStarts:
    """N(1/2, std^2) pixels, clipped to [0, 1]."""
    return lambda labels, seeds: (0.5 + std * noise.normal(seeds, 0, context.image_shape)).clamp(0.0, 1.0)


def class_mean_noise(context: StartContext, std: float = 0.3) -> DrawStarts:
    """The mean image of the class plus N(0, std^2), clipped to [0, 1]."""
    mean_images = context.class_pca().mean_images

    def draw(labels: Tensor, seeds: Tensor) -> Tensor:
        centres = mean_images(labels).to(seeds.device)
        return (centres + std * noise.normal(seeds, 0, context.image_shape).to(centres)).clamp(0.0, 1.0)

    return draw


def class_gaussian(context: StartContext) -> DrawStarts:
    """Draws from the Gaussian with the mean and covariance of the class's training images (Yang and Ji 2021)."""
    return ClassGaussian(context.training_images(), context.device).sample


def class_pca(context: StartContext) -> DrawStarts:
    """The class mean plus its principal components with normal coefficients (WEAT, arXiv 2407.06315)."""
    return context.class_pca().sample


def local_pca(context: StartContext, k: int | None = None, explained_variance: float = 0.99) -> DrawStarts:
    """The principal components of the k training images nearest to a random one of the class (DER, arXiv 2505.22486).

    ``k`` is not published; 50 to 500 are sensible.
    """
    size = None if k is None else count("start 'local-pca'", "k", k, 2)
    return LocalPCA(context.training_images(), size, explained_variance, context.device).sample


def data(context: StartContext) -> DrawStarts:
    """A random training image of each label's class."""
    return _images_by_class(context.training_images())


def replay_buffer(context: StartContext) -> DrawStarts:
    """A random chain of each label's class, kept from training (JEM, arXiv 1912.03263).

    Chains of E(x) may have left the class with which they were started.
    """
    return _images_by_class(context.replay_chains())


def _images_by_class(images: ImageSet) -> DrawStarts:
    """Draws a random image of each label's class."""
    class_indices = images.indices_by_class

    def draw(labels: Tensor, seeds: Tensor) -> Tensor:
        for label in labels.unique().tolist():
            if label >= len(class_indices) or not len(class_indices[label]):
                raise ConfigError(f"start: {images.name} ({images.split}) has no image of class {label}")
        u = noise.uniform(seeds, 0, (1,)).view(-1).cpu()
        drawn = [class_indices[int(k)][int(u[i] * len(class_indices[int(k)]))] for i, k in enumerate(labels)]
        return images.float_images(torch.stack(drawn), device=labels.device)

    return draw


def phase_scrambled_data(context: StartContext) -> DrawStarts:
    """Training images of any class with random Fourier phases (see :mod:`trilemma.data.outlier_images`)."""
    outside = OutsideImages("phase-scrambled", context.training_images(), context.device)
    return lambda labels, seeds: outside(seeds)


def create_start(context: StartContext) -> DrawStarts:
    """Returns the draw function of the start or the mixture of starts that ``context.name`` names.

    In a mixture, the start of an image is drawn from the image's own seed, with the probabilities of the weights.

    Raises:
        ConfigError: unknown name or option, wrong weights, missing training images or statistics, or a function of
            another signature; when drawing, images of another shape.
        DataError: an option that does not fit the training images.
        ImageError: when drawing, images outside [0, 1].
    """
    parts = parse_start(context.name)
    draws = [_create_part(replace(context, name=part.name), part) for part in parts]
    if len(parts) == 1:
        return draws[0]
    limits = torch.tensor([part.weight for part in parts], dtype=torch.float64).cumsum(0)[:-1]

    def draw(labels: Tensor, seeds: Tensor) -> Tensor:
        # The complement of the seeds gives numbers that are independent of those that the starts draw.
        u = noise.uniform(~seeds, 0, (1,))[:, 0].double()
        chosen = torch.bucketize(u, limits.to(u.device))
        images = torch.empty(len(labels), *context.image_shape, device=labels.device)
        for position, draw_part in enumerate(draws):
            index = (chosen == position).nonzero().squeeze(1)
            if len(index):
                images[index] = draw_part(labels[index], seeds[index]).to(images)
        return images

    return draw


def _create_part(context: StartContext, part: StartPart) -> DrawStarts:
    """The draw function of one start."""
    what = f"start {context.name!r}"
    built_in, function = STARTS.row(context.name).built_in, STARTS.get(context.name)
    for option in part.options:
        known = [*signature(function).parameters][1:]
        if option not in known:
            has = f"its options: {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{what}: no option {option!r}.{nearest(option, known)} {has.capitalize()}")
    draw_images: DrawStarts = call_registered(what, function, context, **part.options)

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
    chains: ImageSet | str | Path | None = None,
) -> Tensor:
    """Returns starting images ``[N, C, H, W]`` for ``labels``; fits the statistics of the start first.

    Args:
        name: a name of the registry ``STARTS``, with options, or a mixture (:mod:`trilemma.config.starts`).
        labels, seeds: int64 ``[N]``.
        image_shape: (C, H, W).
        data: training images; needed by ``class-gaussian``, ``local-pca``, ``data`` and ``phase-scrambled``.
        pca: class PCA; needed by ``class-pca`` and ``class-mean-noise`` if ``data`` is ``None``.
        chains: chains of a finished run, or its path; needed by ``replay-buffer``.

    Raises:
        ConfigError: see :func:`create_start`.
    """
    return create_start(StartContext(name, image_shape, labels.device, data, pca, chains))(labels, seeds)


class TrainingStarts:
    """Draws starting images of chains during training; fast, and resumed bit for bit from its state.

    Args:
        name: a name of the registry ``STARTS``, with options, or a mixture (:mod:`trilemma.config.starts`).
        data: training images.
        seed: seed of the starting images.
        device: device of the starting images.
    """

    def __init__(self, name: str, data: ImageSet, seed: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed + SEED_OFFSET)
        self.bank = GaussianBank(ClassGaussian(data, device), seed) if name == "class-gaussian" else None
        self.draw = None if self.bank else create_start(StartContext(name, data.image_shape, device, data))

    def __call__(self, labels: Tensor) -> Tensor:
        """Returns starting images ``[n, C, H, W]`` on the device for ``labels``, int64 ``[n]`` on the CPU."""
        if self.bank is not None:
            return self.bank.draw(labels)
        assert self.draw is not None
        seeds = noise.image_seeds(len(labels), self.generator, self.device)
        return self.draw(sent(labels, self.device), seeds)

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
