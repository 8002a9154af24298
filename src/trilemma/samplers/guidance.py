"""The energies that chains descend, adaptive stopping, repulsion between chains, and the statistics that they need."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.config.chains import ENERGIES
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError
from trilemma.units import choice, length
from trilemma.walks import objectives
from trilemma.walks.objectives import subset
from trilemma.walks.walk import Objective, Stop

# Training images from which the statistics are computed, and classes up to which there are covariances of the logits:
# 4 MB in a classifier file.
IMAGES = 5_000
COVARIANCE_CLASSES = 100
# Added to the diagonal of the covariance of the logits.
RIDGE = 1e-3
# Kernel width of the repulsion per pixel value: half the difference of two typical images of a class.
KERNEL_WIDTH = 0.25


def energy_objective(
    clf: Classifier, name: str, labels: Tensor, temperature: float | None = None
) -> Objective:
    """Returns the energy U that sampling descends, as an objective.

    ``joint`` is E(x, y), ``marginal`` E(x), ``ce`` the cross-entropy of the logits divided by the temperature, which at
    temperature 1 is E(x, y) - E(x). ``reference`` is ``(E(x, y) - m_y)^2`` with m_y the mean joint energy of the
    training images of class y: its minimum is at the energy of real images, while E(x, y) itself is unbounded below
    (DER, arXiv 2505.22486). ``mahalanobis`` is its form on all logits, ``(f - m_y)^T (S_y + 1e-3 I)^-1 (f - m_y)`` with
    m_y and S_y the mean and covariance of the logits of the training images of class y.

    Args:
        clf: the classifier.
        name: one of :data:`trilemma.config.chains.ENERGIES`.
        labels: int64 ``[N]``, y.
        temperature: of ``ce``, above 0; ``None`` for 1. A high one keeps the gradient of images that are classified
            with certainty.

    Raises:
        ConfigError: unknown name, a temperature of another energy, or statistics that the classifier does not hold.
    """
    choice("generate", "energy", name, ENERGIES)
    if temperature is not None:
        if name != "ce":
            raise ConfigError(
                f"generate: temperature={temperature!r}; only the energy 'ce' has one, not {name!r}"
            )
        temperature = length("generate", "temperature", temperature)
    if name == "joint":
        return objectives.joint_energy(clf, labels)
    if name == "marginal":
        return objectives.marginal_energy(clf)
    if name == "ce":
        return objectives.cross_entropy(clf, labels, temperature or 1.0)
    if name == "mahalanobis":
        return _mahalanobis(clf, labels)
    means = _statistic(clf, "energy_mean").to(labels.device)

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        y = subset(labels, index)
        return (energies.joint_energy(logits, y) - means[y]).square(), logits

    return objective


def _mahalanobis(clf: Classifier, labels: Tensor) -> Objective:
    if clf.num_classes > COVARIANCE_CLASSES:
        raise ConfigError(
            f"generate: energy='mahalanobis' needs a covariance of the logits per class, which is limited to "
            f"{COVARIANCE_CLASSES} classes; this classifier has {clf.num_classes}, use energy 'reference'"
        )
    means, covariances = (_statistic(clf, name) for name in ("logit_mean", "logit_covariance"))
    ridge = RIDGE * torch.eye(means.shape[1], dtype=torch.float64)
    precisions = torch.linalg.inv(covariances.double().cpu() + ridge).to(labels.device, means.dtype)
    means = means.to(labels.device)

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        y = subset(labels, index)
        shift = logits - means[y].to(logits)
        return torch.einsum("ni,nij,nj->n", shift, precisions[y].to(logits), shift), logits

    return objective


def reference_stop(clf: Classifier, labels: Tensor, tau: float | None = None) -> Stop:
    """Returns a rule that stops an image when ``(E(x, y) - m_y)^2 < tau``.

    Args:
        clf: the classifier, with stored statistics.
        labels: int64 ``[N]``, y.
        tau: the limit; by default a quarter of the variance of the joint energy in class y.

    Raises:
        ConfigError: the classifier has no stored statistics.
    """
    means, stds = (_statistic(clf, name).to(labels.device) for name in ("energy_mean", "energy_std"))
    limits = (stds / 2).square() if tau is None else torch.full_like(means, tau)
    if not bool((limits > 0).all()):
        raise ConfigError(
            f"generate: the energy of the training images of class {clf.class_names[int(limits.argmin())]!r} has a "
            "standard deviation of 0, so no chain of it would stop; set stop=False (--no-stop)"
        )

    def stop(values: Tensor, logits: Tensor, index: Tensor) -> Tensor:
        y = subset(labels, index)
        return (energies.joint_energy(logits, y) - means[y]).square() < limits[y]

    return stop


def repelled(objective: Objective, labels: Tensor, weight: float, starts: Tensor) -> Objective:
    """Returns ``objective`` plus a repulsion of every chain from the other chains of its class in the same call.

    The repulsion of chain i is ``weight`` times the mean over the others j of ``exp(-||x_i - x_j||^2 / (2 h^2))``, with
    ``h = sqrt(D) / 4`` for D pixel values. It is between 0 (all far away) and ``weight`` (all at the same place), in
    the unit of the objective. The gradient of chain i regards the others as fixed. A chain that has left the batch,
    because it met a stopping rule, still repels the others from its final image.

    Args:
        objective: the energy without repulsion.
        labels: int64 ``[N]``, the class of each chain.
        weight: at least 0.
        starts: ``[N, C, H, W]``, the starting images.

    Raises:
        ConfigError: every class has one chain only.
    """
    if len(labels) and int(labels.bincount().max()) < 2:
        raise ConfigError(
            f"generate: diversity={weight:g} repels the chains of a class from each other, but every class has one; "
            "generate at least 2 images per class"
        )
    positions = starts.detach().flatten(1).clone()
    width = 2 * KERNEL_WIDTH**2 * positions.shape[1]

    def objective_with_repulsion(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        values, logits = objective(images, index)
        current = images.flatten(1)
        positions[index] = current.detach()
        squares = current.square().sum(1)[:, None] + positions.square().sum(1) - 2 * current @ positions.T
        others = labels[index][:, None] == labels
        others[torch.arange(len(index), device=index.device), index] = False
        kernel = (-squares / width).exp() * others
        return values + weight * kernel.sum(1) / others.sum(1).clamp_min(1), logits

    return objective_with_repulsion


def _statistic(clf: Classifier, name: str) -> Tensor:
    if name not in clf.statistics:
        raise ConfigError(
            f"energies 'reference' and 'mahalanobis' and stop=True need {name!r} of the training images, which this "
            "classifier does not hold; add the training images (data=..., or --data on the command line)"
        )
    return clf.statistics[name]


def with_statistics(clf: Classifier, energy: str, stop: bool, data: ImageSet | None) -> Classifier:
    """Returns the classifier, or a shallow copy with the missing statistics of the training images.

    Args:
        clf: not changed.
        energy: name of the energy; ``mahalanobis`` needs statistics of the logits, ``reference`` those of the energy.
        stop: whether chains stop, which needs those of the energy.
        data: training images; if ``None``, the classifier itself is returned.
    """
    needed = {"logit_mean", "logit_covariance"} if energy == "mahalanobis" else set()
    if energy == "reference" or stop:
        needed |= {"energy_mean", "energy_std"}
    if data is None or needed <= clf.statistics.keys():
        return clf
    fitted = copy.copy(clf)
    subset_of_data = data.first(IMAGES)
    statistics = logit_statistics(training_logits(clf, subset_of_data), subset_of_data.labels)
    fitted.statistics = {**statistics, **clf.statistics}
    return fitted


def logit_statistics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Returns the statistics of each class that energies and stopping need.

    A class without images has those of all images, and a class with one image has their spread.

    Args:
        logits: ``[N, K]`` of training images.
        labels: int64 ``[N]``.

    Returns:
        ``energy_mean`` and ``energy_std`` ``[K]`` of E(x, y) and, for up to 100 classes, ``logit_mean`` ``[K, K]`` and
        ``logit_covariance`` ``[K, K, K]``: row y of each is of class y.
    """
    energy, classes = energies.joint_energy(logits, labels), logits.shape[1]
    members = [labels == k for k in range(classes)]
    any_members = torch.ones_like(members[0])
    one = [m if m.any() else any_members for m in members]
    two = [m if m.sum() > 1 else any_members for m in members]
    statistics = {
        "energy_mean": torch.stack([energy[m].mean() for m in one]),
        "energy_std": torch.stack([energy[m].std() for m in two]),
    }
    if classes <= COVARIANCE_CLASSES:
        wide = logits.double()
        statistics["logit_mean"] = torch.stack([wide[m].mean(0) for m in one]).float()
        statistics["logit_covariance"] = torch.stack([wide[m].T.cov() for m in two]).float()
    return statistics


@torch.no_grad()
def training_logits(clf: Classifier, data: ImageSet) -> Tensor:
    """Returns the logits ``[N, K]`` of all images in eval mode, on the CPU."""
    with inner_loop(clf, "eval"):
        return torch.cat(
            [
                clf.logits(data.float_images(indices, device=clf.device)).cpu()
                for indices in torch.arange(len(data)).split(500)
            ]
        )
