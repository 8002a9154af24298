"""Selection of the best checkpoint by clean or PGD-10 accuracy on held-out images; test images are never used."""

from __future__ import annotations

from typing import NamedTuple

import torch

from trilemma.attacks.pgd import fgsm, pgd
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.config.config import Config
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import Method

BATCH_SIZE = 256


def criterion(config: Config, method: Method) -> str:
    """Returns the criterion of selection: ``clean``, ``pgd-10`` or ``last``.

    ``auto`` is ``pgd-10`` for methods that train on adversarial images, and ``clean`` for the others.
    """
    if config.training.select != "auto":
        return config.training.select
    return "pgd-10" if method.trains_on_adversarial else "clean"


class HeldOut(NamedTuple):
    """Accuracies on held-out images, in [0, 1]; ``None`` for an attack that was not run."""

    clean: float
    pgd10: float | None = None
    fgsm: float | None = None


def held_out_accuracies(
    clf: Classifier, held_out: ImageSet, count: int, single_step: bool = False
) -> HeldOut:
    """Returns the accuracies on the first ``count`` held-out images: clean, and if there is a threat, under PGD-10.

    The random starts of PGD-10 are the same in every call, so that checkpoints are compared on the same attack.

    Args:
        clf: the finished classifier.
        held_out: held-out images.
        count: number of images.
        single_step: whether to attack with FGSM too, at a tenth of the cost of PGD-10.
    """
    subset = held_out.first(count)
    generator = torch.Generator().manual_seed(0)
    clean_correct = pgd10_correct = fgsm_correct = 0
    for indices in torch.arange(len(subset)).split(BATCH_SIZE):
        images = subset.float_images(indices, device=clf.device)
        labels = subset.labels[indices].to(clf.device)
        clean_correct += _count_correct(clf, images, labels)
        if clf.threat is not None:
            adversarial = pgd(clf, images, labels, clf.threat, steps=10, generator=generator)
            pgd10_correct += _count_correct(clf, adversarial, labels)
            if single_step:
                fgsm_correct += _count_correct(clf, fgsm(clf, images, labels, clf.threat), labels)
    has_threat = clf.threat is not None
    return HeldOut(
        clean_correct / len(subset),
        pgd10_correct / len(subset) if has_threat else None,
        fgsm_correct / len(subset) if has_threat and single_step else None,
    )


@torch.no_grad()
def _count_correct(clf: Classifier, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Returns the number of correctly classified images, in eval mode."""
    with inner_loop(clf, "eval"):
        return int((clf.logits(images).argmax(1) == labels).sum())
