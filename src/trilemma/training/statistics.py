"""Statistics of the training data that are stored with a classifier: class PCA and energies of training images."""

from __future__ import annotations

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


def fit_pca(data: ImageSet) -> ClassPCA:
    """Fits the class PCA stored with a classifier: at most 64 directions per class, up to 99 % of the variance."""
    return ClassPCA.fit(data, explained_variance=0.99, max_components=COMPONENTS, max_images_per_class=1000)


def attach(clf: Classifier, data: ImageSet, pca: ClassPCA | None = None) -> None:
    """Stores statistics of the training images in ``clf.statistics``.

    They are the class PCA, per class the mean and standard deviation of E(x, y) and, for up to 100 classes, the mean
    and covariance of the logits, and quantiles of E(x).

    Args:
        clf: the finished classifier.
        data: its training images.
        pca: an already fitted class PCA; fitted to ``data`` by default.
    """
    clf.statistics = {f"pca.{name}": value for name, value in (pca or fit_pca(data)).state_dict().items()}
    subset = data.first(IMAGES)
    logits = training_logits(clf, subset)
    clf.statistics |= {**logit_statistics(logits, subset.labels), "energy_quantiles": _quantiles(logits)}


def energy_quantiles(clf: Classifier, data: ImageSet) -> Tensor:
    """Evenly spaced quantiles of E(x) of training images ``data``, as :func:`attach` stores them."""
    return _quantiles(training_logits(clf, data.first(IMAGES)))


def _quantiles(logits: Tensor) -> Tensor:
    return energies.marginal_energy(logits).quantile(torch.linspace(0.0, 1.0, QUANTILE_STEPS + 1))
