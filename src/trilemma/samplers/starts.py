"""Where chains begin: uniform noise, class Gaussians, class PCA, real images, or scrambled ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.data.image_set import ImageSet
from trilemma.data.statistics import ClassGaussian, ClassPCA, GaussianBank
from trilemma.errors import ConfigError, nearest
from trilemma.samplers.outside import OutsideImages

# Per class: a second each at 32x32, and 99 % of the variance needs fewer directions than that.
PCA_IMAGES = 1_000

# Keeps the starts of one process apart from the other random numbers of its own and of the next processes.
STREAM = 500_000

STARTS = ("uniform", "gaussian", "class-mean-noise", "class-gaussian", "class-pca", "data", "phase-scrambled")


def uniform(seeds: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """U(0, 1) pixels, ``[N, C, H, W]``."""
    return noise.uniform(seeds, 0, image_shape)


def gaussian(seeds: Tensor, image_shape: tuple[int, int, int], std: float = 0.25) -> Tensor:
    """N(1/2, std^2) pixels, clipped to [0, 1]."""
    return (0.5 + std * noise.normal(seeds, 0, image_shape)).clamp(0.0, 1.0)


def class_mean_noise(labels: Tensor, seeds: Tensor, means: Tensor, std: float = 0.3) -> Tensor:
    """The mean image of the class plus N(0, std^2), clipped: the least that knows the class.

    Args:
        means: ``[K, C, H, W]``.
    """
    centres = means[labels]
    return (centres + std * noise.normal(seeds, 0, centres.shape[1:]).to(centres)).clamp(0.0, 1.0)


def data_images(labels: Tensor, seeds: Tensor, data: ImageSet) -> Tensor:
    """A random training image of each label's class, ``[N, C, H, W]``."""
    u = noise.uniform(seeds, 0, (1,)).view(-1).cpu()
    of_class = [(data.labels == k).nonzero().squeeze(1) for k in range(data.num_classes)]
    chosen = [of_class[int(k)][int(u[i] * len(of_class[int(k)]))] for i, k in enumerate(labels)]
    return data.float_images(torch.stack(chosen), device=labels.device)


def fitted_pca(data: ImageSet, device: torch.device | str) -> ClassPCA:
    """The class PCA of the training images, where the starts are made."""
    return ClassPCA.fit(data, max_images_per_class=PCA_IMAGES).to(device)


def make_start(
    name: str,
    labels: Tensor,
    seeds: Tensor,
    image_shape: tuple[int, int, int],
    data: ImageSet | None,
    pca: ClassPCA | None,
) -> Tensor:
    """Starts ``[N, C, H, W]`` for ``labels``.

    Args:
        name: one of :data:`STARTS`.
        labels, seeds: int64 ``[N]``.
        data: training images; needed by ``class-gaussian``, ``data`` and ``phase-scrambled``.
        pca: class PCA; needed by ``class-pca`` and ``class-mean-noise`` where ``data`` is not given.

    Raises:
        ConfigError: unknown name, or a start that needs data that were not given.
    """
    if name not in STARTS:
        raise ConfigError(
            f"start: unknown start {name!r}.{nearest(name, STARTS)} Starts: {', '.join(STARTS)}"
        )
    if name == "uniform":
        return uniform(seeds, image_shape)
    if name == "gaussian":
        return gaussian(seeds, image_shape)
    if name in ("class-pca", "class-mean-noise"):
        if pca is None and data is not None:
            pca = fitted_pca(data, seeds.device)
        if pca is None:
            raise ConfigError(
                f"start: {name!r} needs class statistics; pass data=... or a classifier saved with them"
            )
        if name == "class-pca":
            return pca.sample(labels, seeds)
        return class_mean_noise(labels, seeds, pca.means.view(-1, *image_shape).to(seeds.device))
    if data is None:
        raise ConfigError(f"start: {name!r} needs training images; pass data=...")
    if name == "phase-scrambled":
        return OutsideImages(name, data, labels.device)(seeds)
    if name == "data":
        return data_images(labels, seeds, data)
    return ClassGaussian(data, labels.device).sample(labels, seeds)


class TrainingStarts:
    """Fresh starts for chains during training: cheap, and exactly resumable.

    Args:
        name: one of :data:`STARTS`.
        data: training images.
        seed: of the starts.
        device: where they are made.
    """

    def __init__(self, name: str, data: ImageSet, seed: int, device: torch.device | str) -> None:
        self.name = name
        self.data = data
        self.generator = torch.Generator().manual_seed(seed + STREAM)
        self.bank = GaussianBank(ClassGaussian(data, device), seed) if name == "class-gaussian" else None
        self.outside = OutsideImages(name, data, device) if name == "phase-scrambled" else None
        self.pca = fitted_pca(data, device) if name in ("class-pca", "class-mean-noise") else None

    def __call__(self, labels: Tensor) -> Tensor:
        """Starts ``[n, C, H, W]`` for ``labels``, int64 ``[n]``."""
        if self.bank is not None:
            return self.bank.draw(labels)
        seeds = noise.image_seeds(len(labels), self.generator, labels.device)
        if self.outside is not None:
            return self.outside(seeds)
        return make_start(self.name, labels, seeds, self.data.image_shape, self.data, self.pca)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "bank": None if self.bank is None else self.bank.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
