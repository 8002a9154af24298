"""The protocols ``autoattack-standard`` and ``autoattack-few-classes``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trilemma.attacks.autoattack import CLASSES_OF_STANDARD, FEW_CLASSES, STANDARD, attack_pool
from trilemma.attacks.pool import Pool
from trilemma.attacks.progress import watch
from trilemma.classifier import Classifier
from trilemma.errors import ConfigError
from trilemma.evaluation.protocol import LongJudge, LongProtocol, Saved, Verdicts
from trilemma.threat import Threat


def _ensemble(attacks: Sequence[str]) -> LongJudge:
    """A judge for whom an image is right if it withstands all of ``attacks``."""

    def judge(
        clf: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat | None,
        seed: int,
        *,
        batch_size: int,
        progress: bool,
        saved: Saved | None,
    ) -> Verdicts:
        assert threat is not None  # the runner sees to it
        state, resume = (None, False) if saved is None else (saved.path, saved.resume)
        with watch(len(labels), progress) as tell:
            pool = attack_pool(
                clf, images, labels, threat, attacks, batch_size, seed, tell, state=state, resume=resume
            )
        return Verdicts(pool.standing, pool_facts(pool))

    return judge


def pool_facts(pool: Pool) -> dict[str, Any]:
    """Images attacked at all, and per attack what it was handed, what it broke, and its cost."""
    first = next(iter(pool.work.values()))
    by_attack = {}
    for name, work in pool.work.items():
        facts = dataclasses.asdict(work)
        forwards, backwards = facts.pop("forwards"), facts.pop("backwards")
        each = max(1, work.attacked)
        by_attack[name] = facts | {
            "seconds": round(work.seconds, 2),
            "forwards_per_image": round(forwards / each, 1),
            "backwards_per_image": round(backwards / each, 1),
        }
    return {"attacked": first.attacked, "attacks": by_attack}


def _enough_classes(clf: Classifier) -> None:
    if clf.num_classes < CLASSES_OF_STANDARD:
        raise ConfigError(
            f"autoattack-standard: not defined for {clf.num_classes} classes, its targeted DLR loss needs "
            f"{CLASSES_OF_STANDARD}; use autoattack-few-classes"
        )


autoattack_standard = LongProtocol(
    version=1, needs_threat=True, judge=_ensemble(STANDARD), suits=_enough_classes
)
autoattack_few_classes = LongProtocol(version=1, needs_threat=True, judge=_ensemble(FEW_CLASSES))
