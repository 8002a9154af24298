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
    joint: list[Tensor] = []
    marginal: list[Tensor] = []
    with inner_loop(clf, "eval"):
        for indices in torch.arange(len(subset)).split(500):
            images = subset.float_images(indices, device=clf.device)
            labels = subset.labels[indices].to(clf.device)
            logits = clf.logits(images)
            joint.append(energies.joint_energy(logits, labels).cpu())
            marginal.append(energies.marginal_energy(logits).cpu())
    energy = torch.cat(joint)
    per_class = [energy[subset.labels == k] for k in range(clf.num_classes)]
    clf.statistics["energy_mean"] = torch.stack([e.mean() if len(e) else energy.mean() for e in per_class])
    clf.statistics["energy_std"] = torch.stack([e.std() if len(e) > 1 else energy.std() for e in per_class])
    levels = torch.linspace(0.0, 1.0, QUANTILE_STEPS + 1)
    clf.statistics["energy_quantiles"] = torch.cat(marginal).quantile(levels)
