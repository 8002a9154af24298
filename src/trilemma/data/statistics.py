"""Class statistics that chains start from: class means, class PCA and class Gaussians.

Noise belongs to the image's seed, so a start does not depend on the batch around it. Statistics are of the
images as
they are: un-augmented and without noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from trilemma import noise
from trilemma.data.image_set import ImageSet, as_float
from trilemma.data.splitting import class_ranks
from trilemma.errors import DataError


def class_means(image_set: ImageSet) -> Tensor:
    """Mean image of each class, float32 ``[K, C, H, W]`` in [0, 1].

    Raises:
        DataError: a class has no image.
    """
    return torch.stack([image_set.float_images(places).mean(0) for places in _places_by_class(image_set)])


def _places_by_class(image_set: ImageSet) -> list[Tensor]:
    places = [torch.nonzero(image_set.labels == label).flatten() for label in range(image_set.num_classes)]
    for name, found in zip(image_set.class_names, places, strict=True):
        if len(found) == 0:
            raise DataError(
                f"{image_set.name} ({image_set.split}): class {name!r} has no image; statistics need one"
            )
    return places


def _by_class(labels: Tensor) -> list[tuple[int, Tensor]]:
    """(class, places in the batch) of every class present."""
    return [(label, torch.nonzero(labels == label).flatten()) for label in sorted(set(labels.tolist()))]


@dataclass(frozen=True)
class ClassPCA:
    """Principal components of each class: K classes, D = C H W pixels, R components at most.

    Attributes:
        means: ``[K, D]``.
        components: ``[K, R, D]``, orthonormal rows, the largest first; zero beyond a class's own number.
        singular_values: ``[K, R]`` of the centred class images ``[n, D]``; zero beyond a class's own number.
        counts: int64 ``[K]``, images used.
        explained_variance: the share of the variance asked for.
        image_shape: (C, H, W).
    """

    means: Tensor
    components: Tensor
    singular_values: Tensor
    counts: Tensor
    explained_variance: float
    image_shape: tuple[int, int, int]

    @classmethod
    def fit(
        cls,
        image_set: ImageSet,
        explained_variance: float = 0.99,
        max_components: int | None = None,
        max_images_per_class: int | None = None,
    ) -> Self:
        """Decompose each class, in float64 on the CPU.

        A class costs the eigenvalues of a square matrix of side min(n, D): on two CPU cores 5 to 9 s for
        4,500 images of 32x32x3, under 1 s for 1,000 of them.

        Args:
            image_set: training images.
            explained_variance: keep the fewest components with this share of the class's variance, in (0, 1].
            max_components: at most so many.
            max_images_per_class: a fixed random choice of so many images of a class.

        Raises:
            DataError: a class has no image, or ``explained_variance`` is out of range.
        """
        if not 0 < explained_variance <= 1:
            raise DataError(f"explained_variance is {explained_variance}; it is a share in (0, 1]")
        means, bases, values, counts = [], [], [], []
        ranks = class_ranks(image_set.labels)
        for places in _places_by_class(image_set):
            if max_images_per_class is not None:
                places = places[ranks[places] < max_images_per_class]
            centred = image_set.float_images(places).flatten(1).double()
            mean = centred.mean(0)
            basis, strength = _principal(centred - mean)
            share = torch.cumsum(strength**2, 0) / (strength**2).sum().clamp(min=1e-12)
            keep = min(
                len(strength),
                int((share < explained_variance - 1e-9).sum()) + 1,
                max_components or len(strength),
            )
            means.append(mean.float())
            bases.append(basis[:keep].float())
            values.append(strength[:keep].float())
            counts.append(len(places))
        return cls(
            torch.stack(means),
            torch.nn.utils.rnn.pad_sequence(bases, batch_first=True),
            torch.nn.utils.rnn.pad_sequence(values, batch_first=True),
            torch.tensor(counts),
            explained_variance,
            image_set.image_shape,
        )

    def sample(self, labels: Tensor, seeds: Tensor, sigma: float | None = None) -> Tensor:
        """x0 = mu_y + sum_i s_i sigma a_i u_i with a ~ N(0, I), clipped to [0, 1].

        Args:
            labels: int64 ``[N]``.
            seeds: int64 ``[N]``, one per image.
            sigma: ``None`` for 1/sqrt(n_y - 1), which gives the covariance of the class.

        Returns:
            float32 ``[N, C, H, W]``.
        """
        images = torch.empty(len(labels), self.means.shape[1], device=self.means.device)
        coefficients = noise.normal(seeds, 0, (self.singular_values.shape[1],))
        for label, places in _by_class(labels):
            spread = (self.counts[label] - 1).clamp(min=1).float().rsqrt() if sigma is None else sigma
            scaled = coefficients[places] * (self.singular_values[label] * spread)
            images[places] = self.means[label] + scaled @ self.components[label]
        return images.clamp_(0, 1).view(len(labels), *self.image_shape)

    def to(self, device: torch.device | str) -> Self:
        """A copy on ``device``."""
        tensors = {name: value.to(device) for name, value in self.state_dict().items()}
        return self.from_state_dict(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, to be stored beside a network's weights."""
        return {
            "means": self.means,
            "components": self.components,
            "singular_values": self.singular_values,
            "counts": self.counts,
            "explained_variance": torch.tensor(self.explained_variance, dtype=torch.float64),
            "image_shape": torch.tensor(self.image_shape),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """The inverse of :meth:`state_dict`."""
        channels, height, width = state["image_shape"].tolist()
        return cls(
            state["means"],
            state["components"],
            state["singular_values"],
            state["counts"],
            float(state["explained_variance"]),
            (channels, height, width),
        )


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors ``[R, D]`` and singular values ``[R]``, by the smaller Gram matrix."""
    count, size = centred.shape
    wide = count < size
    squares, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    rank = max(1, int((squares > squares[0] * 1e-12).sum()))
    values, vectors = squares[:rank].sqrt(), vectors[:, :rank]
    basis = (centred.T @ vectors / values.clamp(min=1e-12)).T if wide else vectors.T
    # A vector and its negative are equally good; make the largest entry positive, so that runs agree.
    peaks = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return basis * torch.where(peaks < 0, -1.0, 1.0), values


class ClassGaussian:
    """N(mu_y, S_y + jitter I) of each class, without its covariance matrix.

    x0 = mu_y + X_c^T eps / sqrt(n) + sqrt(jitter) xi, with X_c the n centred images of the class and
    S_y = X_c^T X_c / n, eps and xi ~ N(0, I): the sample has exactly that law, before it
    is clipped to [0, 1]. Images stay uint8 on the device and become float class by class.

    Args:
        image_set: training images.
        device: where images live and samples are made.
        jitter: variance added to every pixel (1e-4 on [-1, 1] in the papers, 2.5e-5 here).

    Raises:
        DataError: a class has no image.
    """

    def __init__(
        self, image_set: ImageSet, device: torch.device | str = "cpu", jitter: float = 2.5e-5
    ) -> None:
        self.image_shape = image_set.image_shape
        self.jitter = jitter
        self.device = torch.device(device)
        self._images = [
            image_set.images[places].flatten(1).to(device) for places in _places_by_class(image_set)
        ]
        self._means = class_means(image_set).flatten(1).to(device)

    @property
    def num_classes(self) -> int:
        return len(self._images)

    def sample(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """Starts float32 ``[N, C, H, W]`` in [0, 1]; ``labels``, ``seeds`` int64 ``[N]``, on the device."""
        images = torch.empty(len(labels), self._means.shape[1], device=self.device)
        white = noise.normal(seeds, 1, (self._means.shape[1],))
        for label, places in _by_class(labels):
            weights = noise.normal(seeds[places], 0, (len(self._images[label]),))
            images[places] = self._map(label, weights, white[places])
        return images.clamp_(0, 1).view(len(labels), *self.image_shape)

    def _map(self, label: int, weights: Tensor, white: Tensor) -> Tensor:
        """The affine map from (eps ``[M, n]``, xi ``[M, D]``) to unclipped pixels ``[M, D]``.

        X_c^T eps = X^T (eps - mean(eps)), so the images themselves never have to be centred.
        """
        count = len(self._images[label])
        centred = (weights - weights.mean(1, keepdim=True)) / math.sqrt(count)
        return self._means[label] + centred @ as_float(self._images[label]) + math.sqrt(self.jitter) * white


class GaussianBank:
    """Starts of a :class:`ClassGaussian` made ahead, a chunk of a class per matrix product.

    For a replay buffer that wants a few new chains per step. Draw number i of class y is a pure function of
    (seed, y, i), so the counters are all there is to resume.

    Args:
        class_gaussian: the law.
        seed: of all draws.
        chunk: starts made at once.
    """

    def __init__(self, class_gaussian: ClassGaussian, seed: int, chunk: int = 64) -> None:
        self._law = class_gaussian
        self._seed = seed
        self._chunk = chunk
        self._counters = [0] * class_gaussian.num_classes
        self._ready: dict[int, tuple[int, Tensor]] = {}  # class -> (number of the chunk, its images)

    def draw(self, labels: Tensor) -> Tensor:
        """The next start of each label's class: float32 ``[N, C, H, W]`` in [0, 1] on the law's device.

        Labels, int64 ``[N]``, are read on the CPU; keep them there to spare an accelerator the wait.
        """
        starts = [self._next(label) for label in labels.tolist()]
        return (
            torch.stack(starts) if starts else torch.empty(0, *self._law.image_shape, device=self._law.device)
        )

    def _next(self, label: int) -> Tensor:
        number, place = divmod(self._counters[label], self._chunk)
        ready = self._ready.get(label)
        if ready is None or ready[0] != number:
            counters = torch.arange(number * self._chunk, (number + 1) * self._chunk, device=self._law.device)
            seeds = (((self._seed * 1_000_003 + label) % 2**31) << 32) + counters
            ready = number, self._law.sample(torch.full_like(counters, label), seeds)
            self._ready[label] = ready
        self._counters[label] += 1
        return ready[1][place]

    def state_dict(self) -> dict[str, Tensor]:
        """``counters``: int64 ``[K]``, draws of each class so far."""
        return {"counters": torch.tensor(self._counters)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._counters = [int(counter) for counter in state["counters"]]
