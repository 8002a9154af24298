"""Selection of the best checkpoint by clean or PGD-10 accuracy on held-out images; test images are never used.

A classifier that answers one class for every image is as accurate under every attack as without one, so its PGD-10
accuracy can be above that of a useful checkpoint. A checkpoint whose clean accuracy is clearly above chance therefore
precedes every checkpoint at chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from trilemma.attacks.pgd import fgsm, pgd
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.config.config import Config
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import Method

BATCH_SIZE = 256
# Standard errors by which an accuracy has to exceed chance.
CLEARLY = 2.0


def criterion(config: Config, method: Method) -> str:
    """Returns the criterion of selection: ``clean``, ``pgd-10`` or ``last``.

    ``auto`` is ``pgd-10`` for methods that train on adversarial images, and ``clean`` for the others.
    """
    if config.training.select != "auto":
        return config.training.select
    return "pgd-10" if method.trains_on_adversarial else "clean"


class HeldOut(NamedTuple):
    """Accuracies on held-out images, in [0, 1]; ``None`` for an attack that was not run.

    Attributes:
        clean: without an attack.
        pgd10, fgsm: under that attack.
        chance: share of the largest class, the accuracy of a classifier that answers it for every image.
        images: number of images.
        answers: number of classes that were answered for clean images.
    """

    clean: float
    pgd10: float | None = None
    fgsm: float | None = None
    chance: float = 0.0
    images: int = 0
    answers: int = 0

    @property
    def above_chance(self) -> bool:
        """Whether the clean accuracy exceeds chance by more than two standard errors."""
        error = math.sqrt(self.chance * (1 - self.chance) / max(1, self.images))
        return self.clean > self.chance + CLEARLY * error


def score(accuracies: HeldOut, criterion: str) -> list[float]:
    """What a checkpoint is selected by, in order of priority: 1 if it is above chance, and its two accuracies."""
    clean, robust = accuracies.clean, accuracies.pgd10 or 0.0
    return [float(accuracies.above_chance), *((clean, robust) if criterion == "clean" else (robust, clean))]


def passed_over(given: list[float], best: list[float]) -> bool:
    """Whether chance decides between two scores, against the order of their accuracies."""
    return bool(best) and given[0] != best[0] and (given > best) != (given[1:] > best[1:])


def at_chance(row: Mapping[str, Any]) -> str:
    """One line about a selected checkpoint that is no better than chance.

    Args:
        row: its line of ``metrics.jsonl``.
    """
    what = (
        "answers one class for every held-out image"
        if row["held_out_answers"] == 1
        else "is no better than chance on the held-out images"
    )
    return (
        f"the best checkpoint, of epoch {row['epoch']:g}, {what}: clean accuracy {row['held_out_clean']:.1%}, largest "
        f"class {row['held_out_chance']:.1%}; its accuracy under attacks means nothing"
    )


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
    answered = torch.zeros(clf.num_classes, dtype=torch.int64)
    clean_correct = pgd10_correct = fgsm_correct = 0
    for indices in torch.arange(len(subset)).split(BATCH_SIZE):
        images = subset.float_images(indices, device=clf.device)
        labels = subset.labels[indices].to(clf.device)
        answers = _answers(clf, images)
        clean_correct += int((answers == labels).sum())
        answered += torch.bincount(answers.cpu(), minlength=clf.num_classes)
        if clf.threat is not None:
            adversarial = pgd(clf, images, labels, clf.threat, steps=10, generator=generator)
            pgd10_correct += int((_answers(clf, adversarial) == labels).sum())
            if single_step:
                attacked = fgsm(clf, images, labels, clf.threat)
                fgsm_correct += int((_answers(clf, attacked) == labels).sum())
    has_threat = clf.threat is not None
    return HeldOut(
        clean_correct / len(subset),
        pgd10_correct / len(subset) if has_threat else None,
        fgsm_correct / len(subset) if has_threat and single_step else None,
        chance=int(torch.bincount(subset.labels).max()) / len(subset),
        images=len(subset),
        answers=int((answered > 0).sum()),
    )


@torch.no_grad()
def _answers(clf: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Returns the predicted classes ``[N]``, in eval mode."""
    with inner_loop(clf, "eval"):
        return clf.logits(images).argmax(1)
