"""Statistics of the training data that are stored with a classifier: class PCA and energies of training images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.data.statistics import ClassPCA
from trilemma.samplers.guidance import IMAGES, logit_statistics, training_logits

# PCA directions per class, and steps between quantiles of E(x).
COMPONENTS = 64
QUANTILE_STEPS = 1_000
# The class PCA in a classifier file has at most this many bytes. If it would have more, it is stored in half precision
# and with fewer directions; with fewer than FEWEST, a start would say little of its class, and none is stored.
PCA_BYTES = 15_000_000
FEWEST = 8


def fit_pca(data: ImageSet) -> ClassPCA | None:
    """Fits the class PCA stored with a classifier, or ``None`` if it would be too large.

    It has at most 64 directions per class, up to 99 % of the variance, in at most 15 MB: at 32x32x3, 64 directions up
    to 37 classes (in half precision from 19 classes on), 23 for 100 classes, and none from 272 classes on. With the
    statistics of the logits, a file stays below 20 MB beside its weights.
    """
    # Mean and directions of all classes, in half precision.
    directions = min(COMPONENTS, PCA_BYTES // (2 * data.num_classes * math.prod(data.image_shape)) - 1)
    if directions < FEWEST:
        return None
    return ClassPCA.fit(data, explained_variance=0.99, max_components=directions, max_images_per_class=1000)


def _stored(pca: ClassPCA) -> dict[str, Tensor]:
    """The tensors of a class PCA as they are stored."""
    state = pca.state_dict()
    if sum(tensor.nbytes for tensor in state.values()) > PCA_BYTES:
        state |= {name: state[name].half() for name in ("means", "components")}
    return {f"pca.{name}": tensor for name, tensor in state.items()}


def attach(clf: Classifier, data: ImageSet, pca: ClassPCA | None = None) -> None:
    """Stores statistics of the training images in ``clf.statistics``.

    They are the class PCA (unless it would be too large), per class the mean and standard deviation of E(x, y) and, for
    up to 100 classes, the mean and covariance of the logits, and quantiles of E(x).

    Args:
        clf: the finished classifier.
        data: its training images.
        pca: an already fitted class PCA; fitted to ``data`` by default.
    """
    pca = pca or fit_pca(data)
    clf.statistics = {} if pca is None else _stored(pca)
    subset = data.first(IMAGES)
    logits = training_logits(clf, subset)
    clf.statistics |= {**logit_statistics(logits, subset.labels), "energy_quantiles": _quantiles(logits)}


def energy_quantiles(clf: Classifier, data: ImageSet) -> Tensor:
    """Evenly spaced quantiles of E(x) of training images ``data``, as :func:`attach` stores them."""
    return _quantiles(training_logits(clf, data.first(IMAGES)))


def _quantiles(logits: Tensor) -> Tensor:
    return energies.marginal_energy(logits).quantile(torch.linspace(0.0, 1.0, QUANTILE_STEPS + 1))
