"""The protocols of AutoAttack (standard, few classes) and ``screen``, its estimate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from trilemma.attacks.autoattack import FEW_CLASSES, STANDARD, attack_pool
from trilemma.attacks.ensemble.pool import Pool, watch
from trilemma.attacks.screen import screen_pool
from trilemma.classifier.classifier import Classifier
from trilemma.config.presets import CLASSES_OF_TARGETED_DLR
from trilemma.config.registry import METHODS
from trilemma.errors import ConfigError
from trilemma.evaluation.protocol import Judge, Protocol, Request, Verdicts


def _ensemble(attacks: Sequence[str]) -> Judge:
    """A judge that counts an image as robust if it withstands all of ``attacks``."""

    def judge(request: Request) -> Verdicts:
        state, resume = (None, False) if request.saved is None else (request.saved.path, request.saved.resume)
        with watch(len(request.labels), request.progress) as tell:
            pool = attack_pool(
                request.clf, request.images, request.labels, request.ball, attacks, request.batch_size, request.seed,
                tell, state=state, resume=resume,
            )  # fmt: skip
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
    if clf.num_classes < CLASSES_OF_TARGETED_DLR:
        raise ConfigError(
            f"autoattack-standard: not defined for {clf.num_classes} classes, its targeted DLR loss needs "
            f"{CLASSES_OF_TARGETED_DLR}; use autoattack-few-classes"
        )


autoattack_standard = Protocol(
    version=1, needs_threat=True, judge=_ensemble(STANDARD), suits=_enough_classes, long=True
)
autoattack_few_classes = Protocol(version=1, needs_threat=True, judge=_ensemble(FEW_CLASSES), long=True)


# Measured on the reference networks: docs, Protocols.
NOTE = (
    "an estimate, not AutoAttack: it left 1 more image standing than AutoAttack's records, "
    "of 1,250 on five reference networks"
)


def _judge_screen(request: Request) -> Verdicts:
    pool = screen_pool(
        request.clf, request.images, request.labels, request.ball, request.batch_size, request.seed,
        lambda news: request.advance(news.decided),
    )  # fmt: skip
    request.advance(int(pool.standing.sum()))
    return Verdicts(pool.standing, {"note": NOTE, **pool_facts(pool)})


def refuse_single_step(clf: Classifier) -> None:
    """Training with a single step can teach a network to mislead short attacks, and nothing in their result tells.

    Raises:
        ConfigError: the classifier was trained so.
    """
    method, steps = clf.about.get("method"), clf.about.get("attack_steps")
    single = method in METHODS.rows() and METHODS.options(str(method)).single_step
    if single or steps == 1:
        raise ConfigError(
            f"screen: trained by {method} with a single step, on such classifiers short attacks can be far off; "
            "use autoattack-standard"
        )


screen = Protocol(version=1, needs_threat=True, judge=_judge_screen, suits=refuse_single_step)
