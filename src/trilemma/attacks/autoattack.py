"""AutoAttack: attacks that need no tuning, each on what others left (Croce and Hein 2020, arXiv 2003.01690)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from trilemma.attacks.ensemble.oracle import searching
from trilemma.attacks.ensemble.pool import Attack, Pool, Tell, Work, watch
from trilemma.attacks.ensemble.pool_file import PoolFile
from trilemma.classifier.batch_size import resolve_batch_size
from trilemma.classifier.classifier import Classifier, check_labels
from trilemma.config.presets import AUTOATTACK, CLASSES_OF_TARGETED_DLR, Preset, find_preset
from trilemma.config.registry import ATTACKS, import_object
from trilemma.errors import ConfigError
from trilemma.threat import Threat

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
# With 2 or 3 classes the targeted DLR loss is not defined: the margin takes its place.
FEW_CLASSES = ("apgd-ce", "apgd-margin-t", "fab-t", "square")


@dataclass(frozen=True)
class AutoAttackResult:
    """What :func:`autoattack` found.

    Attributes:
        robust: bool ``[N]`` on the CPU: classified correctly, and by every attack left so.
        adversarial: float32 ``[N, C, H, W]`` on the CPU: misclassified images in the ball where one was found, else the
            images as they came.
        broken_by: per image the attack that broke it, ``"clean"`` where it was misclassified as it came, else ``None``.
        work: images attacked and broken, passes and seconds of each attack.
    """

    robust: Tensor
    adversarial: Tensor
    broken_by: list[str | None]
    work: dict[str, Work]


def autoattack(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    attacks: Sequence[str] | None = None,
    progress: bool = True,
    *,
    state: str | Path | None = None,
    resume: bool = False,
) -> AutoAttackResult:
    """The ensemble of ``autoattack-standard``, or another: an image is robust if it withstands every attack.

    Each attack sees only the images that the ones before it left. What it takes for a success counts only if it is in
    the ball and in [0, 1] and ``clf`` itself, in float32, misclassifies it.

    Args:
        clf: the classifier; left exactly as it was, attacked in eval mode.
        images: ``[N, C, H, W]`` in [0, 1], in any memory format, on any device.
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        batch_size: images in the network at once; ``"auto"`` fits it to the free memory. Does not change the result
            beyond rounding.
        seed: of every random number.
        attacks: names of the presets :data:`trilemma.config.presets.AUTOATTACK` or of registered attacks, in order.
            By default :data:`STANDARD`, and with 2 or 3 classes, where that is not defined, :data:`FEW_CLASSES`,
            which is another protocol.
        progress: show images and time left on standard error.
        state: a file to save to, now and then and when interrupted.
        resume: go on from ``state`` where there is one, to the verdicts of an evaluation without interruption.

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: a batch size below 1, no attack, one that needs more classes, or ``resume`` without ``state``.
        UnknownNameError: no such attack.
        CheckpointError: the ``state`` to resume from is of another evaluation, or cannot be read.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    if attacks is None:
        attacks = STANDARD if clf.num_classes >= CLASSES_OF_TARGETED_DLR else FEW_CLASSES
    with watch(len(labels), progress) as tell:
        pool = attack_pool(
            clf, images, labels, threat, attacks, batch_size, seed, tell, state=state, resume=resume
        )
    return AutoAttackResult(pool.standing, pool.adversarial(), pool.breakers(), pool.work)


def attack_pool(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    attacks: Sequence[str],
    batch_size: int | Literal["auto"],
    seed: int,
    tell: Tell,
    *,
    state: str | Path | None = None,
    resume: bool = False,
) -> Pool:
    """The pool after all of ``attacks``; arguments as of :func:`autoattack`, but images may be uint8 too."""
    chosen = _chosen(attacks, clf.num_classes)
    if resume and state is None:
        raise ConfigError(
            "autoattack: resume=True needs state=, the file that the interrupted one was saved to"
        )
    pool = Pool(clf, images, labels, threat, seed, resolve_batch_size(clf, images, batch_size), tell)
    if state is None:
        pool.look()
        for attack in chosen:
            pool.run(attack)
        return pool
    file = PoolFile(Path(state), pool, attacks)
    if resume:
        file.restore()
    try:
        pool.look()
        for attack in chosen:
            pool.run(attack, file.save_if_due)
    finally:  # also when it is interrupted
        file.save()
    return pool


def ensemble_attack(table: Mapping[str, Preset], name: str) -> Attack:
    """The attack of an ensemble that a preset describes; any attack of the registry can be one.

    Raises:
        UnknownNameError: no such preset and no such registered attack.
    """
    preset = find_preset(table, name, "autoattack")
    row = ATTACKS.row(preset.attack)
    search = import_object(row.search) if row.search else searching(import_object(row.target))
    return Attack(name, partial(search, **preset.settings), preset.passes, preset.stream)


def _chosen(names: Sequence[str], num_classes: int) -> list[Attack]:
    if not names:
        raise ConfigError(f"attacks: none given; choose some of {', '.join(AUTOATTACK)}")
    attacks = [ensemble_attack(AUTOATTACK, name) for name in dict.fromkeys(names)]
    if "apgd-t" in names and num_classes < CLASSES_OF_TARGETED_DLR:
        raise ConfigError(
            f"apgd-t: the targeted DLR loss needs at least {CLASSES_OF_TARGETED_DLR} classes, the classifier has "
            f"{num_classes}; use apgd-margin-t, as the protocol autoattack-few-classes does"
        )
    return attacks
