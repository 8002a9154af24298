"""What an attack climbs: per-image objectives for :func:`trilemma.walks.walk.walk`, with their logits."""

from __future__ import annotations

from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.walks.walk import Objective


def subset(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor[index]`` without a copy while nobody has left the batch."""
    return tensor if len(index) == len(tensor) else tensor[index]


def cross_entropy(clf: Classifier, labels: Tensor) -> Objective:
    """``CE(x, y)``: untargeted attacks climb it."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return energies.cross_entropy(logits, subset(labels, index)), logits

    return objective


def targeted_cross_entropy(clf: Classifier, target_labels: Tensor) -> Objective:
    """``-CE(x, t)``: climbing it makes the classifier say ``t``."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return -energies.cross_entropy(logits, subset(target_labels, index)), logits

    return objective


def high_energy(clf: Classifier, labels: Tensor, gamma: float) -> Objective:
    """``CE(x, y) + gamma E(x)``: climbing it raises the loss and, for gamma above 1, the marginal energy too."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        loss = energies.cross_entropy(logits, subset(labels, index))
        return loss + gamma * energies.marginal_energy(logits), logits

    return objective


def divergence(clf: Classifier, clean_logits: Tensor) -> Objective:
    """``KL(f(x) || f(x*))`` with the clean side held: the inner objective of TRADES."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return energies.kl_divergence(subset(clean_logits, index), logits), logits

    return objective


def joint_energy(clf: Classifier, labels: Tensor) -> Objective:
    """``E(x, y)``: climbing it leaves the region where the model believes the pair."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return energies.joint_energy(logits, subset(labels, index)), logits

    return objective


def marginal_energy(clf: Classifier) -> Objective:
    """``E(x)``: descended by the samplers of the JEM family."""

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        return energies.marginal_energy(logits), logits

    return objective
