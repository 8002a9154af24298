"""Statistics of the training data that are stored with a classifier: class PCA and energies of training images."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.data.image_set import ImageSet
from trilemma.data.statistics import ClassPCA

# Training images for the statistics of energies, PCA directions per class, and steps between quantiles of E(x).
IMAGES = 5_000
COMPONENTS = 64
QUANTILE_STEPS = 1_000


def fit_pca(data: ImageSet) -> ClassPCA:
    """Fits the class PCA stored with a classifier: at most 64 directions per class, up to 99 % of the variance."""
    return ClassPCA.fit(data, explained_variance=0.99, max_components=COMPONENTS, max_images_per_class=1000)


@torch.no_grad()
def attach(clf: Classifier, data: ImageSet, pca: ClassPCA | None = None) -> None:
    """Stores class PCA, mean and standard deviation of E(x, y) per class, and quantiles of E(x), in ``clf.statistics``.

    Args:
        clf: the finished classifier.
        data: its training images.
        pca: an already fitted class PCA; fitted to ``data`` by default.
    """
    clf.statistics = {f"pca.{name}": value for name, value in (pca or fit_pca(data)).state_dict().items()}
    subset = data.first(IMAGES)
    logits = _logits(clf, subset)
    energy = energies.joint_energy(logits, subset.labels)
    per_class = [energy[subset.labels == k] for k in range(clf.num_classes)]
    clf.statistics["energy_mean"] = torch.stack([e.mean() if len(e) else energy.mean() for e in per_class])
    clf.statistics["energy_std"] = torch.stack([e.std() if len(e) > 1 else energy.std() for e in per_class])
    clf.statistics["energy_quantiles"] = _quantiles(logits)


def energy_quantiles(clf: Classifier, data: ImageSet) -> Tensor:
    """Evenly spaced quantiles of E(x) of training images ``data``, as :func:`attach` stores them."""
    return _quantiles(_logits(clf, data.first(IMAGES)))


def _quantiles(logits: Tensor) -> Tensor:
    return energies.marginal_energy(logits).quantile(torch.linspace(0.0, 1.0, QUANTILE_STEPS + 1))


@torch.no_grad()
def _logits(clf: Classifier, data: ImageSet) -> Tensor:
    """Logits ``[N, K]`` of all images in eval mode, on the CPU."""
    with inner_loop(clf, "eval"):
        return torch.cat(
            [
                clf.logits(data.float_images(indices, device=clf.device)).cpu()
                for indices in torch.arange(len(data)).split(500)
            ]
        )
