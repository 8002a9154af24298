"""The protocols ``autoattack-standard``, ``autoattack-few-classes`` and ``screen``, a fast estimate of the former."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trilemma.attacks.autoattack import FEW_CLASSES, STANDARD, attack_pool
from trilemma.attacks.ensemble.pool import Pool, show_progress
from trilemma.attacks.screen import screen_pool
from trilemma.classifier.classifier import Classifier
from trilemma.config.presets import CLASSES_OF_TARGETED_DLR
from trilemma.config.registry import METHODS
from trilemma.errors import ConfigError
from trilemma.evaluation.protocol import MeasureFunction, Protocol, Request, Verdicts


def _ensemble(attacks: Sequence[str]) -> MeasureFunction:
    """A protocol function that counts an image as robust if none of ``attacks`` breaks it."""

    def measure(request: Request) -> Verdicts:
        saved = request.resume_state
        state, resume = (None, False) if saved is None else (saved.path, saved.resume)
        with show_progress(len(request.labels), request.progress) as on_progress:
            pool = attack_pool(
                request.clf, request.images, request.labels, request.required_threat, attacks,
                request.batch_size, request.seed, on_progress, state=state, resume=resume, workers=request.workers,
            )  # fmt: skip
        return _verdicts(request, pool, {})

    return measure


def _verdicts(request: Request, pool: Pool, facts: Mapping[str, Any]) -> Verdicts:
    adversarial = pool.adversarial() if request.keep_adversarial else None
    return Verdicts(pool.robust, {**facts, **pool_facts(pool)}, adversarial=adversarial)


def pool_facts(pool: Pool) -> dict[str, Any]:
    """JSON-like facts for a result row: ``attacked`` (number of images) and ``attacks`` (counts by attack)."""
    first = next(iter(pool.work.values()))
    by_attack = {}
    for name, work in pool.work.items():
        facts = dataclasses.asdict(work)
        forwards, backwards = facts.pop("forwards"), facts.pop("backwards")
        images = max(1, work.attacked)
        by_attack[name] = facts | {
            "seconds": round(work.seconds, 2),
            "forwards_per_image": round(forwards / images, 1),
            "backwards_per_image": round(backwards / images, 1),
        }
    return {"attacked": first.attacked, "attacks": by_attack}


def _enough_classes(clf: Classifier) -> None:
    if clf.num_classes < CLASSES_OF_TARGETED_DLR:
        raise ConfigError(
            f"autoattack-standard: not defined for {clf.num_classes} classes, as its targeted DLR loss needs "
            f"{CLASSES_OF_TARGETED_DLR}; use autoattack-few-classes"
        )


autoattack_standard = Protocol(
    version=1, needs_threat=True, measure=_ensemble(STANDARD), check_classifier=_enough_classes, long=True
)
autoattack_few_classes = Protocol(version=1, needs_threat=True, measure=_ensemble(FEW_CLASSES), long=True)


# Measured on the reference networks: docs, Protocols.
NOTE = (
    "an estimate, not AutoAttack: on five reference networks it left 1 more image robust than AutoAttack's records, "
    "of 1,250"
)


def _measure_screen(request: Request) -> Verdicts:
    pool = screen_pool(
        request.clf, request.images, request.labels, request.required_threat, request.batch_size, request.seed,
        lambda progress: request.advance(progress.decided), request.workers,
    )  # fmt: skip
    request.advance(int(pool.robust.sum()))
    return _verdicts(request, pool, {"note": NOTE})


def refuse_single_step(clf: Classifier) -> None:
    """Refuses classifiers trained with a single-step attack: they can mislead short attacks without a visible sign.

    Raises:
        ConfigError: the classifier was trained with a single step.
    """
    method, steps = clf.about.get("method"), clf.about.get("attack_steps")
    single = method in METHODS.rows() and METHODS.options(str(method)).single_step
    if single or steps == 1:
        raise ConfigError(
            f"screen: the classifier was trained by {method} with a single step, and short attacks can overestimate "
            "its robustness; use autoattack-standard"
        )


screen = Protocol(version=1, needs_threat=True, measure=_measure_screen, check_classifier=refuse_single_step)
