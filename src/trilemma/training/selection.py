"""Which checkpoint is best: accuracy on held-out images, clean or under PGD-10, never on test images."""

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
    """``clean``, ``pgd-10`` or ``last``; ``auto`` is robust only for methods that train on adversarial images."""
    if config.training.select != "auto":
        return config.training.select
    return "pgd-10" if method.trains_on_adversarial else "clean"


class HeldOut(NamedTuple):
    """Accuracies on held-out images; ``None`` for what was not attacked."""

    clean: float
    pgd10: float | None = None
    fgsm: float | None = None


def held_out_accuracies(
    clf: Classifier, held_out: ImageSet, count: int, single_step: bool = False
) -> HeldOut:
    """Clean and PGD-10 accuracy (the latter with a threat model) on the first ``count`` held-out images.

    The attack's random starts are the same at every call, so that checkpoints are compared on equal terms.

    Args:
        single_step: attack with FGSM too: a tenth of the steps that PGD-10 takes.
    """
    part = held_out.first(count)
    generator = torch.Generator().manual_seed(0)
    clean = robust = stepped = 0
    for places in torch.arange(len(part)).split(BATCH_SIZE):
        images, labels = part.float_images(places, device=clf.device), part.labels[places].to(clf.device)
        clean += _right(clf, images, labels)
        if clf.threat is not None:
            starred = pgd(clf, images, labels, clf.threat, steps=10, generator=generator)
            robust += _right(clf, starred, labels)
            if single_step:
                stepped += _right(clf, fgsm(clf, images, labels, clf.threat), labels)
    attacked = clf.threat is not None
    return HeldOut(
        clean / len(part),
        robust / len(part) if attacked else None,
        stepped / len(part) if attacked and single_step else None,
    )


@torch.no_grad()
def _right(clf: Classifier, images: torch.Tensor, labels: torch.Tensor) -> int:
    with inner_loop(clf, "eval"):
        return int((clf.logits(images).argmax(1) == labels).sum())
