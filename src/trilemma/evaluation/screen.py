"""The protocol ``screen``: what three short attacks leave, with the distance of that to AutoAttack."""

from __future__ import annotations

from torch import Tensor

from trilemma.attacks.pool import News
from trilemma.attacks.screen import screen_pool
from trilemma.classifier import Classifier
from trilemma.errors import ConfigError
from trilemma.evaluation.autoattack import pool_facts
from trilemma.evaluation.progress import Advance
from trilemma.evaluation.protocol import Protocol, Verdicts
from trilemma.registry import METHODS
from trilemma.threat import Threat

# Measured on the reference networks: docs, Protocols.
NOTE = (
    "an estimate, not AutoAttack: it left 1 more image standing than AutoAttack's records, "
    "of 1,250 on five reference networks"
)


def _judge(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    seed: int,
    *,
    batch_size: int,
    advance: Advance,
) -> Verdicts:
    assert threat is not None  # the runner sees to it

    def tell(news: News) -> None:
        advance(news.decided)

    pool = screen_pool(clf, images, labels, threat, batch_size, seed, tell)
    advance(int(pool.standing.sum()))
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


screen = Protocol(version=1, needs_threat=True, judge=_judge, suits=refuse_single_step)
