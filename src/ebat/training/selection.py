"""Which checkpoint is best: accuracy on held-out images, clean or under PGD-10, never on test images."""

from __future__ import annotations

import torch

from ebat.attacks.pgd import pgd
from ebat.classifier import Classifier
from ebat.config import Config
from ebat.contexts import inner_loop
from ebat.data.image_set import ImageSet
from ebat.methods.base import Method

BATCH_SIZE = 256


def criterion(config: Config, method: Method) -> str:
    """``clean`` or ``pgd-10``; ``auto`` is robust only for methods that train on adversarial images."""
    if config.training.select != "auto":
        return config.training.select
    return "pgd-10" if method.trains_on_adversarial else "clean"


def held_out_accuracies(clf: Classifier, held_out: ImageSet, count: int) -> tuple[float, float | None]:
    """Clean and PGD-10 accuracy (``None`` without a threat model) on the first ``count`` held-out images.

    The attack's random starts are the same at every call, so that checkpoints are compared on equal terms.
    """
    part = held_out.first(count)
    generator = torch.Generator().manual_seed(0)
    clean = robust = 0
    for places in torch.arange(len(part)).split(BATCH_SIZE):
        images, labels = part.float_images(places, device=clf.device), part.labels[places].to(clf.device)
        clean += _right(clf, images, labels)
        if clf.threat is not None:
            starred = pgd(clf, images, labels, clf.threat, steps=10, generator=generator)
            robust += _right(clf, starred, labels)
    return clean / len(part), (robust / len(part) if clf.threat is not None else None)


@torch.no_grad()
def _right(clf: Classifier, images: torch.Tensor, labels: torch.Tensor) -> int:
    with inner_loop(clf, "eval"):
        return int((clf.logits(images).argmax(1) == labels).sum())
