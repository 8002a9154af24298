"""Class statistics from which sampler chains are initialised: class means, class PCA and class Gaussians.

Noise depends only on the seed of an image, so that a start does not depend on its batch. Statistics are computed on the
images without augmentation and noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from trilemma import noise
from trilemma.data.image_set import ImageSet, as_float
from trilemma.data.splitting import class_ranks
from trilemma.errors import DataError

# Images around a random one for a local PCA, and samples of it that are drawn at once.
NEIGHBOURS = 100
CHUNK = 16
# Samples of a class that a bank draws at once, and the memory of those of all classes: 64 samples up to 160 classes of
# 32x32x3, 10 for 1,000.
BANK_CHUNK = 64
BANK_BYTES = 128_000_000


def class_means(image_set: ImageSet) -> Tensor:
    """Mean image of each class, float32 ``[K, C, H, W]`` in [0, 1].

    Raises:
        DataError: a class has no image.
    """
    return torch.stack([image_set.float_images(index).mean(0) for index in _indices_by_class(image_set)])


def _indices_by_class(image_set: ImageSet, most: int | None = None) -> list[Tensor]:
    """The indices of the images of each class, or of at most ``most`` of them, a fixed random choice.

    Raises:
        DataError: a class has no image.
    """
    for name, index in zip(image_set.class_names, image_set.indices_by_class, strict=True):
        if len(index) == 0:
            raise DataError(
                f"{image_set.name} ({image_set.split}): class {name!r} has no image; add at least one"
            )
    if most is None:
        return list(image_set.indices_by_class)
    ranks = class_ranks(image_set.labels)
    return [index[ranks[index] < most] for index in image_set.indices_by_class]


def _by_class(labels: Tensor) -> list[tuple[int, Tensor]]:
    """(class, indices in ``labels``) of every class that occurs."""
    return [(label, torch.nonzero(labels == label).flatten()) for label in sorted(set(labels.tolist()))]


@dataclass(frozen=True)
class ClassPCA:
    """Principal components of each class: K classes, D = C H W pixel values, at most R components.

    Attributes:
        means: ``[K, D]``.
        components: ``[K, R, D]``, orthonormal, in descending order of variance; padded with zeros for classes with
            fewer components.
        singular_values: ``[K, R]`` of the centred class images ``[n, D]``; padded with zeros as well.
        counts: int64 ``[K]``, number of images used per class.
        explained_variance: the fraction of the variance that was required.
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
        """Computes the principal components of each class, in float64 on the CPU.

        Each class needs the eigenvalues of a square matrix of side min(n, D): on two CPU cores 5 to 9 s for 4,500
        images of 32x32x3, under 1 s for 1,000 of them.

        Args:
            image_set: training images.
            explained_variance: keep the smallest number of components that explains this fraction of the variance of
                the class, in (0, 1].
            max_components: largest number of components per class.
            max_images_per_class: use at most this many images of a class, a fixed random choice.

        Raises:
            DataError: a class has no image, or ``explained_variance`` is out of range.
        """
        _check_share(explained_variance)
        fitted = [
            _fit_class(image_set, index, explained_variance, max_components)
            for index in _indices_by_class(image_set, max_images_per_class)
        ]
        return cls(
            torch.stack([one.mean for one in fitted]),
            torch.nn.utils.rnn.pad_sequence([one.basis for one in fitted], batch_first=True),
            torch.nn.utils.rnn.pad_sequence([one.singular_values for one in fitted], batch_first=True),
            torch.tensor([one.images for one in fitted]),
            explained_variance,
            image_set.image_shape,
        )

    def sample(self, labels: Tensor, seeds: Tensor, sigma: float | None = None) -> Tensor:
        """Draws x0 = mu_y + sum_i s_i sigma a_i u_i with a ~ N(0, I), clipped to [0, 1].

        Args:
            labels: int64 ``[N]``.
            seeds: int64 ``[N]``, one per image.
            sigma: scale; ``None`` for 1/sqrt(n_y - 1), with which the samples have the covariance of the class.

        Returns:
            float32 ``[N, C, H, W]``.
        """
        images = torch.empty(len(labels), self.means.shape[1], device=self.means.device)
        coefficients = noise.normal(seeds, 0, (self.singular_values.shape[1],))
        for label, index in _by_class(labels):
            scale = (self.counts[label] - 1).clamp(min=1).float().rsqrt() if sigma is None else sigma
            scaled = coefficients[index] * (self.singular_values[label] * scale)
            images[index] = self.means[label] + scaled @ self.components[label]
        return images.clamp_(0, 1).view(len(labels), *self.image_shape)

    def mean_images(self, labels: Tensor) -> Tensor:
        """The mean image of the class of each label, float32 ``[N, C, H, W]``; ``labels`` is int64 ``[N]``."""
        return self.means[labels.to(self.means.device)].view(len(labels), *self.image_shape)

    def to(self, device: torch.device | str) -> Self:
        """A copy on ``device``."""
        tensors = {name: value.to(device) for name, value in self.state_dict().items()}
        return self.from_state_dict(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """All attributes as tensors, to be stored with a network's weights."""
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
        """Creates the object from the tensors of :meth:`state_dict`; those in half precision become float32."""
        channels, height, width = state["image_shape"].tolist()
        return cls(
            state["means"].float(),
            state["components"].float(),
            state["singular_values"],
            state["counts"],
            float(state["explained_variance"]),
            (channels, height, width),
        )


class _FittedClass(NamedTuple):
    """The principal components of one class, as in :class:`ClassPCA` and without padding."""

    mean: Tensor
    basis: Tensor
    singular_values: Tensor
    images: int


def _fit_class(
    image_set: ImageSet, index: Tensor, explained_variance: float, max_components: int | None = None
) -> _FittedClass:
    """The principal components of the images at ``index``."""
    pixels = image_set.float_images(index).flatten(1).double()
    mean = pixels.mean(0)
    basis, singular = _principal(pixels - mean)
    share = torch.cumsum(singular**2, 0) / (singular**2).sum().clamp(min=1e-12)
    rank = min(
        len(singular),
        int((share < explained_variance - 1e-9).sum()) + 1,
        max_components or len(singular),
    )
    return _FittedClass(mean.float(), basis[:rank].float(), singular[:rank].float(), len(index))


def _check_share(explained_variance: float) -> None:
    if not 0 < explained_variance <= 1:
        raise DataError(f"explained_variance is {explained_variance}; give a fraction in (0, 1]")


class ClassPCAOnDemand:
    """The same distribution as :class:`ClassPCA`, whose components are computed when a class is first drawn.

    With many classes or large images, the components of all classes take too much memory and time (64 directions of
    1,000 classes at 224 pixels are 38 GB). Here one class is in memory at a time, and a call draws its classes in turn.

    Args:
        image_set: training images.
        explained_variance, max_images_per_class: as of :meth:`ClassPCA.fit`.
        device: device of the samples.

    Raises:
        DataError: a class has no image, or ``explained_variance`` is out of range.
    """

    def __init__(
        self,
        image_set: ImageSet,
        explained_variance: float = 0.99,
        max_images_per_class: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_share(explained_variance)
        self._image_set, self._explained_variance, self._device = image_set, explained_variance, device
        self._indices = _indices_by_class(image_set, max_images_per_class)

    def mean_images(self, labels: Tensor) -> Tensor:
        """The mean image of the class of each label, float32 ``[N, C, H, W]``; ``labels`` is int64 ``[N]``."""
        shape = self._image_set.image_shape
        images = torch.empty(len(labels), *shape, device=self._device)
        for label, index in _by_class(labels):
            images[index] = self._image_set.float_images(self._indices[label]).mean(0).to(images)
        return images

    def sample(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """As :meth:`ClassPCA.sample` with the scale of the class."""
        shape = self._image_set.image_shape
        images = torch.empty(len(labels), math.prod(shape), device=self._device)
        for label, index in _by_class(labels):
            fitted = _fit_class(self._image_set, self._indices[label], self._explained_variance)
            coefficients = noise.normal(seeds[index], 0, fitted.singular_values.shape).to(images)
            scaled = coefficients * (fitted.singular_values * max(fitted.images - 1, 1) ** -0.5).to(images)
            images[index] = fitted.mean.to(images) + scaled @ fitted.basis.to(images)
        return images.clamp_(0, 1).view(len(labels), *shape)


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors ``[R, D]`` and singular values ``[R]`` of ``[n, D]``, from the smaller Gram matrix."""
    count, size = centred.shape
    wide = count < size
    squares, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    rank = max(1, int((squares > squares[0] * 1e-12).sum()))
    values, vectors = squares[:rank].sqrt(), vectors[:, :rank]
    basis = (centred.T @ vectors / values.clamp(min=1e-12)).T if wide else vectors.T
    # The sign of a singular vector is arbitrary; the largest entry is made positive, so that results are reproducible.
    peaks = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return basis * torch.where(peaks < 0, -1.0, 1.0), values


class LocalPCA:
    """Samples from the principal components of the training images near a random one of the class (DER).

    x0 = mu + sum_i s_i a_i u_i / sqrt(k - 1), a ~ N(0, I), with mu, u_i and s_i the mean, principal directions and
    singular values of the k images of the class that are nearest to a random one z in L2 distance, z included. Before
    it is clipped to [0, 1], a sample given z has the mean and, in the directions kept, the covariance of these images.

    Nothing is fitted before a sample is drawn, and its class needs all its images: there are no statistics to store.

    Args:
        image_set: training images.
        k: number of images; ``None`` for 100, or all images of a smaller class.
        explained_variance: keep the smallest number of directions that explains this fraction of the variance, in
            (0, 1].
        device: device of the samples.

    Raises:
        DataError: a class has fewer than ``k`` images or fewer than 2, or ``explained_variance`` is out of range.
    """

    def __init__(
        self,
        image_set: ImageSet,
        k: int | None = None,
        explained_variance: float = 0.99,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_share(explained_variance)
        self.image_shape = image_set.image_shape
        self.k = k or NEIGHBOURS
        self.explained_variance = explained_variance
        self.device = torch.device(device)
        self._images = [image_set.images[index].flatten(1) for index in _indices_by_class(image_set)]
        needed = 2 if k is None else k
        for name, images in zip(image_set.class_names, self._images, strict=True):
            if len(images) < needed:
                raise DataError(
                    f"{image_set.name} ({image_set.split}): class {name!r} has {len(images)} images, but local-pca "
                    f"needs k={needed} of each class; choose a smaller k or another start"
                )

    def sample(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """One sample per label, float32 ``[N, C, H, W]`` in [0, 1]; ``labels`` and ``seeds`` are int64 ``[N]``."""
        samples = torch.empty(len(labels), math.prod(self.image_shape), device=self.device)
        position = noise.uniform(seeds, 1, (1,))[:, 0].double().cpu()
        for label, index in _by_class(labels):
            images = self._images[label]
            count = min(self.k, len(images))
            white = noise.normal(seeds[index], 0, (count,)).double().cpu()
            chosen = (position[index.cpu()] * len(images)).long()
            drawn = [
                self._draw(images, chosen[some], white[some])
                for some in torch.arange(len(index)).split(CHUNK)
            ]
            samples[index] = torch.cat(drawn).to(samples)
        return samples.clamp_(0, 1).view(len(labels), *self.image_shape)

    def _draw(self, images: Tensor, chosen: Tensor, white: Tensor) -> Tensor:
        """Unclipped samples ``[M, D]``, in float64, around the images ``chosen`` ``[M]`` of one class ``[n, D]``.

        ``white``: N(0, 1) numbers ``[M, k]``, one per neighbour.
        """
        count = white.shape[1]
        nearest = _distances(images[chosen], images).sort(dim=1, stable=True).indices[:, :count]
        near = as_float(images[nearest]).double()
        mean = near.mean(1, keepdim=True)
        centred = near - mean
        variances, vectors = torch.linalg.eigh(centred @ centred.mT)
        share = variances.clamp_min(0).flip(1).cumsum(1) / variances.clamp_min(0).sum(
            1, keepdim=True
        ).clamp_min(1e-12)
        # Directions up to and including the one with which the share reaches the required one, in ascending order.
        kept = torch.cat([torch.zeros_like(share[:, :1]), share[:, :-1]], 1) < self.explained_variance - 1e-9
        # The projection of white noise onto the eigenvectors, which does not depend on their arbitrary signs.
        coefficients = vectors.mT @ white[..., None] * kept.flip(1)[..., None]
        weights = vectors @ coefficients / math.sqrt(count - 1)
        samples: Tensor = mean + weights.mT @ centred
        return samples[:, 0]


def _distances(points: Tensor, images: Tensor) -> Tensor:
    """Squared L2 distances ``[M, n]`` of ``points`` ``[M, D]`` from ``images`` ``[n, D]``; exact for uint8."""
    wide = points.double()
    columns = []
    for part in images.split(1000):
        other = part.double()
        columns.append(wide.square().sum(1)[:, None] + other.square().sum(1) - 2 * wide @ other.T)
    return torch.cat(columns, 1)


class ClassGaussian:
    """Samples from N(mu_y, S_y + jitter I) of each class, without computing the covariance matrix S_y.

    x0 = mu_y + X_c^T eps / sqrt(n) + sqrt(jitter) xi, with X_c the n centred images of the class, S_y = X_c^T X_c / n,
    and eps and xi ~ N(0, I). Before it is clipped to [0, 1], a sample has exactly this distribution. Images are stored
    as uint8 on the device and converted to float one class at a time.

    Args:
        image_set: training images.
        device: device of the stored images and of the samples.
        jitter: variance added to every pixel value (1e-4 on [-1, 1] in the papers, which is 2.5e-5 on [0, 1]).

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
            image_set.images[index].flatten(1).to(device) for index in _indices_by_class(image_set)
        ]
        self._means = class_means(image_set).flatten(1).to(device)

    @property
    def num_classes(self) -> int:
        return len(self._images)

    def sample(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """One sample per label, float32 ``[N, C, H, W]`` in [0, 1]; ``labels`` and ``seeds`` are int64 ``[N]``."""
        images = torch.empty(len(labels), *self.image_shape, device=self.device)
        for label, index in _by_class(labels):
            images[index] = self.sample_class(label, seeds[index])
        return images

    def sample_class(self, label: int, seeds: Tensor) -> Tensor:
        """One sample of a class per seed, float32 ``[N, C, H, W]`` in [0, 1]; needs no label on the device."""
        white = noise.normal(seeds, 1, (self._means.shape[1],))
        weights = noise.normal(seeds, 0, (len(self._images[label]),))
        return self._map(label, weights, white).clamp_(0, 1).view(len(seeds), *self.image_shape)

    def _map(self, label: int, weights: Tensor, white: Tensor) -> Tensor:
        """The affine map from eps ``[M, n]`` and xi ``[M, D]`` to unclipped pixel values ``[M, D]``.

        X_c^T eps = X^T (eps - mean(eps)), so that the images do not have to be centred.
        """
        count = len(self._images[label])
        centred = (weights - weights.mean(1, keepdim=True)) / math.sqrt(count)
        return self._means[label] + centred @ as_float(self._images[label]) + math.sqrt(self.jitter) * white


def _chunk_size(num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Samples of a class that are drawn at once: 64, or as many as the memory of a bank holds of every class."""
    return max(1, min(BANK_CHUNK, BANK_BYTES // (4 * num_classes * math.prod(image_shape))))


class GaussianBank:
    """Draws samples of a :class:`ClassGaussian` ahead of use, a chunk of one class per matrix product.

    Meant for a replay buffer that needs a few new starts per step. Draw number i of class y depends only on (seed, y,
    i), so that the counters are the whole state.

    Args:
        class_gaussian: the distribution.
        seed: seed of all draws.
        chunk: number of samples computed at once; ``None`` for 64, or as many as fit into 128 MB for all classes.
    """

    def __init__(self, class_gaussian: ClassGaussian, seed: int, chunk: int | None = None) -> None:
        self._distribution = class_gaussian
        self._seed = seed
        self._chunk = chunk or _chunk_size(class_gaussian.num_classes, class_gaussian.image_shape)
        self._counters = [0] * class_gaussian.num_classes
        # Class to (number of the current chunk, its images).
        self._chunks: dict[int, tuple[int, Tensor]] = {}

    def draw(self, labels: Tensor) -> Tensor:
        """The next sample of each label's class: float32 ``[N, C, H, W]`` in [0, 1] on the distribution's device.

        Args:
            labels: int64 ``[N]``, on the CPU; labels on another device cost a synchronisation.
        """
        starts = [self._next(label) for label in labels.tolist()]
        if starts:
            return torch.stack(starts)
        return torch.empty(0, *self._distribution.image_shape, device=self._distribution.device)

    def _next(self, label: int) -> Tensor:
        """The next sample of a class, ``[C, H, W]``."""
        number, index = divmod(self._counters[label], self._chunk)
        chunk = self._chunks.get(label)
        if chunk is None or chunk[0] != number:
            counters = torch.arange(
                number * self._chunk, (number + 1) * self._chunk, device=self._distribution.device
            )
            seeds = (((self._seed * 1_000_003 + label) % 2**31) << 32) + counters
            chunk = number, self._distribution.sample_class(label, seeds)
            # A chunk of one sample is used up by it.
            if self._chunk > 1:
                self._chunks[label] = chunk
        self._counters[label] += 1
        return chunk[1][index]

    def state_dict(self) -> dict[str, Tensor]:
        """``counters``: int64 ``[K]``, the number of samples drawn per class."""
        return {"counters": torch.tensor(self._counters)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self._counters = [int(counter) for counter in state["counters"]]
