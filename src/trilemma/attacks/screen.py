"""Screen: a fast estimate of what AutoAttack would leave, from three short attacks on margins and cross-entropy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trilemma.attacks.autoattack import ensemble_attack
from trilemma.attacks.ensemble.pool import Pool, Tell
from trilemma.classifier.batch_size import resolve_batch_size
from trilemma.classifier.classifier import Classifier, check_labels
from trilemma.config.presets import SCREEN
from trilemma.threat import Threat


def screen(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    batch_size: int | Literal["auto"] = "auto",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images where three short attacks found one, else the images as they came.

    In order, each for what the ones before it left: 25 steps of Auto-PGD on the cross-entropy; 25 steps on the margin
    ``z_t - z_y`` to each of the 4 likeliest other classes; 400 queries of Square Attack. An image stops when it is
    broken. One that withstands all of it costs 659 passes, a fifteenth of AutoAttack's. What stands is an estimate of
    what AutoAttack leaves, from above, and does not stand in for it.

    Args:
        clf: the classifier; left exactly as it was, attacked in eval mode.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        batch_size: images in the network at once; ``"auto"`` fits it to the free memory.
        generator: source of every random number.

    Returns:
        Images ``[N, C, H, W]``, inside the ball and [0, 1].

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: a batch size below 1.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    source = generator.device if generator is not None else None
    seed = int(torch.randint(0, 2**62, (), generator=generator, device=source))
    return screen_pool(clf, images, labels, threat, batch_size, seed).adversarial().to(images)


def screen_pool(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    batch_size: int | Literal["auto"],
    seed: int,
    tell: Tell = lambda news: None,
) -> Pool:
    """The pool after :func:`screen`'s attacks; ``images`` may be uint8 too."""
    pool = Pool(clf, images, labels, threat, seed, resolve_batch_size(clf, images, batch_size), tell)
    pool.look()
    for name in SCREEN:
        pool.run(ensemble_attack(SCREEN, name))
    return pool
