"""AutoAttack: four attacks without tuning, each on the images that the earlier ones did not break.

Croce and Hein 2020, arXiv 2003.01690. How the attacks are run: :mod:`trilemma.attacks.ensemble`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trilemma.attacks.arguments import AnyThreat, attack_arguments
from trilemma.attacks.ensemble.oracle import search_from_attack
from trilemma.attacks.ensemble.pool import Attack, OnProgress, Pool, Work, show_progress
from trilemma.attacks.ensemble.pool_file import PoolFile
from trilemma.attacks.preset import run_preset
from trilemma.classifier.batch_size import resolve_batch_size
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.wrap import Images, Labels, Network
from trilemma.config.presets import AUTOATTACK, CLASSES_OF_TARGETED_DLR, Preset, find_preset
from trilemma.config.registry import ATTACKS, import_object
from trilemma.errors import ConfigError
from trilemma.memory import freed_memory_kept
from trilemma.tables import text_table
from trilemma.threat import Threat
from trilemma.units import seed_number
from trilemma.workers import Workers

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
# With 2 or 3 classes the targeted DLR loss is undefined; the targeted margin replaces it.
FEW_CLASSES = ("apgd-ce", "apgd-margin-t", "fab-t", "square")


@dataclass(frozen=True, repr=False)
class AutoAttackResult:
    """The result of :func:`autoattack`.

    Attributes:
        robust: bool ``[N]`` on the CPU: images that are classified correctly and that no attack broke.
        adversarial: float32 ``[N, C, H, W]`` on the CPU: a misclassified image in the ball where an attack found one,
            the clean image otherwise.
        broken_by: per image, the attack that broke it; ``"clean"`` if misclassified without attack, ``None`` if robust.
        work: per attack, the numbers of attacked and broken images, passes and seconds.
    """

    robust: Tensor
    adversarial: Tensor
    broken_by: list[str | None]
    work: dict[str, Work]

    def __repr__(self) -> str:
        count, total = int(self.robust.sum()), len(self.robust)
        wrong = sum(name == "clean" for name in self.broken_by)
        head = f"AutoAttackResult: {count} of {total} images robust, {wrong} misclassified without attack"
        attacks = [
            {"attack": name, **{key: getattr(work, key) for key in ("attacked", "broken", "seconds")}}
            for name, work in self.work.items()
        ]
        return f"{head}\n{text_table(attacks)}" if attacks else head


@torch.inference_mode(False)
def autoattack(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    attacks: Sequence[str] | None = None,
    progress: bool = True,
    *,
    norm: Any = None,
    state: str | Path | None = None,
    resume: bool = False,
) -> AutoAttackResult:
    """Robustness of each image against an ensemble of attacks, by default that of ``autoattack-standard``.

    An image is robust if no attack breaks it. Each attack runs only on the images that the earlier ones did not break.
    An image counts as broken only if it is in the ball and in [0, 1] and ``clf`` itself, in float32, misclassifies it.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode.
        batch_size: images per forward pass; ``"auto"`` fits it to the free memory. Changes the result by rounding only.
        seed: seed of all random numbers.
        attacks: names of presets of :data:`trilemma.config.presets.AUTOATTACK` or of registered attacks, in order.
            By default :data:`STANDARD`; with 2 or 3 classes, for which that is undefined, :data:`FEW_CLASSES`, a
            protocol of its own.
        progress: show the remaining images and time on standard error.
        state: file to save to, every half minute and when interrupted.
        resume: resume from ``state`` if it exists; the verdicts equal those of an uninterrupted evaluation.

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: an invalid threat, a batch size or seed of a wrong type or range, no attack, an attack that needs
            more classes, or ``resume`` without ``state``.
        UnknownNameError: unknown attack.
        CheckpointError: ``state`` belongs to another evaluation or cannot be read.
    """
    given = attack_arguments("autoattack", clf, images, labels, threat, norm)
    seed = seed_number("autoattack", seed)
    if attacks is None:
        attacks = STANDARD if given.clf.num_classes >= CLASSES_OF_TARGETED_DLR else FEW_CLASSES
    names = [attacks] if isinstance(attacks, str) else attacks
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"autoattack: attacks={attacks!r}; pass a list of names")
    with show_progress(len(given.labels), progress) as on_progress, freed_memory_kept(given.clf.device):
        pool = attack_pool(
            given.clf, given.images, given.labels, given.threat, names, batch_size, seed, on_progress,
            state=state, resume=resume,
        )  # fmt: skip
    return AutoAttackResult(pool.robust, pool.adversarial(), pool.broken_by_names(), pool.work)


def attack_pool(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    attacks: Sequence[str],
    batch_size: int | Literal["auto"],
    seed: int,
    on_progress: OnProgress,
    *,
    state: str | Path | None = None,
    resume: bool = False,
    workers: Workers | None = None,
) -> Pool:
    """The pool after all of ``attacks``; arguments and errors as in :func:`autoattack`, but images may be uint8.

    ``workers`` as in :class:`trilemma.attacks.ensemble.pool.Pool`.
    """
    ensemble = _ensemble(attacks, clf.num_classes)
    if resume and state is None:
        raise ConfigError(
            "autoattack: resume=True needs state=, the file that the interrupted evaluation was saved to"
        )
    size = resolve_batch_size(clf, images, batch_size)
    pool = Pool(clf, images, labels, threat, seed, size, on_progress, workers)
    if state is None:
        pool.check_clean()
        for attack in ensemble:
            pool.run(attack)
        return pool
    file = PoolFile(Path(state), pool, attacks)
    if resume:
        file.restore()
    try:
        pool.check_clean()
        for attack in ensemble:
            pool.run(attack, file.save_if_due)
    # Also after an interruption.
    finally:
        file.save()
    return pool


def ensemble_attack(table: Mapping[str, Preset], name: str) -> Attack:
    """The attack ``name`` for a pool: a preset of ``table``, or any registered attack with its default settings.

    Raises:
        UnknownNameError: neither a preset nor a registered attack.
    """
    preset = find_preset(table, name, "autoattack")
    row = ATTACKS.row(preset.attack)
    search = (
        partial(import_object(row.search), **preset.settings)
        # A registered name without settings of a preset uses the attack's defaults.
        if row.search and preset.settings
        else search_from_attack(partial(run_preset, preset))
    )
    return Attack(name, search, preset.passes, preset.stream)


def _ensemble(names: Sequence[str], num_classes: int) -> list[Attack]:
    if not names:
        raise ConfigError(f"attacks: none given; pass at least one of {', '.join(AUTOATTACK)}")
    attacks = [ensemble_attack(AUTOATTACK, name) for name in dict.fromkeys(names)]
    if "apgd-t" in names and num_classes < CLASSES_OF_TARGETED_DLR:
        raise ConfigError(
            f"apgd-t: the targeted DLR loss needs at least {CLASSES_OF_TARGETED_DLR} classes, the classifier has "
            f"{num_classes}; use apgd-margin-t, as the protocol autoattack-few-classes does"
        )
    return attacks
