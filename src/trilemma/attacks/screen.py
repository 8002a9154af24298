"""Screen: a fast estimate of robust accuracy under AutoAttack, from three short attacks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from trilemma.attacks.arguments import AnyThreat, attack_arguments
from trilemma.attacks.autoattack import ensemble_attack
from trilemma.attacks.ensemble.pool import OnProgress, Pool
from trilemma.classifier.batch_size import resolve_batch_size
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.wrap import Images, Labels, Network
from trilemma.config.presets import SCREEN
from trilemma.threat import Threat
from trilemma.workers import Workers


@torch.inference_mode(False)
def screen(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    batch_size: int | Literal["auto"] = "auto",
    generator: torch.Generator | None = None,
    *,
    norm: Any = None,
) -> Tensor:
    """Adversarial images where one of three short attacks found one, the clean images otherwise.

    The attacks run in order, each on the images that the earlier ones did not break: 25 steps of Auto-PGD on the
    cross-entropy; 25 steps on the margin ``z_t - z_y`` to each of the 4 likeliest other classes; 400 queries of Square
    Attack. An image stops when it is broken. A robust image costs about 659 passes, a fifteenth of AutoAttack's. The
    share of robust images is an estimate, from above, of the share under AutoAttack; it does not replace that number.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode.
        batch_size: images per forward pass; ``"auto"`` fits it to the free memory.
        generator: source of all random numbers.

    Returns:
        Images ``[N, C, H, W]``, inside the ball and [0, 1].

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: an invalid threat, or a batch size that is not ``"auto"`` or a whole number above 0.
    """
    given = attack_arguments("screen", clf, images, labels, threat, norm, generator)
    source = generator.device if generator is not None else None
    seed = int(torch.randint(0, 2**62, (), generator=generator, device=source))
    pool = screen_pool(given.clf, given.images, given.labels, given.threat, batch_size, seed)
    return given.result(pool.adversarial().to(given.images))


def screen_pool(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    batch_size: int | Literal["auto"],
    seed: int,
    on_progress: OnProgress = lambda progress: None,
    workers: Workers | None = None,
) -> Pool:
    """The pool after the attacks of :func:`screen`; ``images`` may also be uint8.

    ``workers`` as in :class:`trilemma.attacks.ensemble.pool.Pool`.
    """
    size = resolve_batch_size(clf, images, batch_size)
    pool = Pool(clf, images, labels, threat, seed, size, on_progress, workers)
    pool.check_clean()
    for name in SCREEN:
        pool.run(ensemble_attack(SCREEN, name))
    return pool
