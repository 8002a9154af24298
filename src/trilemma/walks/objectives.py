"""Per-image objectives for :func:`trilemma.walks.walk.walk`; each returns its values and the logits."""

from __future__ import annotations

from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.walks.walk import Objective


def subset(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor[index]``, without a copy while no image has left the batch.

    Args:
        tensor: ``[N, ...]``.
        index: int64, ascending, without duplicates, as of :class:`trilemma.walks.walk.Walkers`.
    """
    return tensor if len(index) == len(tensor) else tensor[index]


def cross_entropy(clf: Classifier, labels: Tensor, temperature: float = 1.0) -> Objective:
    """``CE(x, y)`` of the logits divided by ``temperature``; untargeted attacks maximise it."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        scaled = logits if temperature == 1.0 else logits / temperature
        return energies.cross_entropy(scaled, subset(labels, index)), logits

    return objective


def targeted_cross_entropy(clf: Classifier, target_labels: Tensor) -> Objective:
    """``-CE(x, t)``, which targeted attacks maximise to make the classifier predict ``t``."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return -energies.cross_entropy(logits, subset(target_labels, index)), logits

    return objective


def high_energy(clf: Classifier, labels: Tensor, gamma: float) -> Objective:
    """``CE(x, y) + gamma E(x)``; maximising it raises the loss and, for gamma above 1, the marginal energy as well."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        loss = energies.cross_entropy(logits, subset(labels, index))
        return loss + gamma * energies.marginal_energy(logits), logits

    return objective


def divergence(clf: Classifier, clean_logits: Tensor) -> Objective:
    """``KL(f(x) || f(x*))`` with fixed clean logits: the inner objective of TRADES."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return energies.kl_divergence(subset(clean_logits, index), logits), logits

    return objective


def joint_energy(clf: Classifier, labels: Tensor) -> Objective:
    """``E(x, y)``; maximising it moves to a low joint density, and samplers minimise it."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return energies.joint_energy(logits, subset(labels, index)), logits

    return objective


def marginal_energy(clf: Classifier) -> Objective:
    """``E(x)``, which the samplers of the JEM family minimise."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return energies.marginal_energy(logits), logits

    return objective
