"""Square Attack: a random search over square windows, from scores alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import sqrt

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.margins import is_wrong, margin
from trilemma.attacks.square_moves import DRAWS, Move, Moves, Recolour, bumps, stripes
from trilemma.classifier.classifier import Classifier, check_labels
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import ConfigError
from trilemma.threat import Threat

FIRST_SHARE = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000)
CHUNK = 50  # queries whose random numbers are drawn in one go
PREPARED = 2**18  # pixel values in the windows that are made ready in one go


def square(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    queries: int = 5000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The image that fooled the classifier, or else the one of lowest margin ``z_y - max_{i != y} z_i``.

    Arxiv 1912.00049. A square window of the perturbation is redrawn per query and kept where the margin falls
    (L-inf: all of it at plus or minus the radius; L2: mass moves from one window to another). The windows' share
    of the image, 0.8 at first, is halved after queries 10, 50, 200, 500, 1000, 2000 and 4000 whatever ``queries``
    is. No gradient is asked for. Each image has its own random numbers, so the result does not depend on the batch.

    Args:
        clf: the classifier; left exactly as it was.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        queries: forward passes per image at most, the start's included; an image stops when it is broken.
        generator: source of the windows and signs.

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1]; wrongly classified ones as they came.

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: queries below 1.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    if queries < 1:
        raise ConfigError(f"square: queries={queries}; ask at least 1 per image")
    seeds = noise.image_seeds(len(images), generator, images.device)
    final = images.detach().clone()
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf)
        living = (~is_wrong(oracle.logits(images), labels)).nonzero().squeeze(1)
        if len(living):
            final[living] = search(
                oracle, images[living], labels[living], threat, seeds[living], queries=queries
            )
    return final


@dataclass
class _Points:
    """The images that still stand; every tensor has one row per image, and both images one memory layout."""

    index: Tensor
    clean: Tensor
    current: Tensor
    margins: Tensor
    labels: Tensor
    seeds: Tensor

    def keep(self, rows: Tensor) -> None:
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name)[rows])


@torch.no_grad()
def search(
    oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor, *, queries: int
) -> Tensor:
    """:func:`square` for correctly classified images, inside :func:`trilemma.classifier.contexts.inner_loop`."""
    clean = images.detach().clone()
    start = (stripes if threat.norm == "linf" else bumps)(clean, noise.derive(seeds, 0), threat.epsilon)
    points = _Points(
        index=torch.arange(len(images), device=images.device),
        clean=clean,
        current=torch.empty_like(clean).copy_(start),
        margins=torch.full((len(images),), torch.inf, device=images.device),
        labels=labels,
        seeds=seeds,
    )
    final = clean.clone()
    moves: Moves | None = None
    begin = end = 0
    for query in range(queries if len(images) else 0):
        if query > 0:
            if moves is None or query == end:
                moves, begin, end = _next_moves(points, query, threat)
            moves.make(query - begin)
        logits = oracle.logits(points.current)
        margins = -margin(logits, points.labels)
        better = margins < points.margins
        # as a rule nobody is near the boundary, and the exact question need not be asked
        broken = is_wrong(logits, points.labels) if bool((~(margins > 0)).any()) else None
        if broken is not None:
            better |= broken
        if moves is not None:
            moves.settle(query - begin, better)
        points.margins = torch.where(better, margins, points.margins)
        if broken is not None and bool(broken.any()):
            final[points.index[broken]] = points.current[broken]
            points.keep((~broken).nonzero().squeeze(1))
            moves = None
            if not len(points.index):
                break
    final[points.index] = points.current
    return threat.project(final, images)


def _next_moves(points: _Points, query: int, threat: Threat) -> tuple[Moves, int, int]:
    """The changes from ``query`` on, and the queries of the first of them and of the first after them.

    Made for many queries in one go. The random numbers come in chunks that depend on the query alone, so that what an
    image draws does not depend on how many are made together.
    """
    count, channels, height, width = points.clean.shape
    side = window_side(query, height, width, at_least=1 if threat.norm == "linf" else 3)
    first = (query - 1) // CHUNK * CHUNK + 1
    room = max(1, PREPARED // (count * channels * side**2))
    end = min(first + CHUNK, query + room, *(after + 1 for after in HALVED_AFTER if after >= query))
    draws = noise.uniform(points.seeds, first, (CHUNK, DRAWS + channels)).transpose(0, 1)
    kind = Recolour if threat.norm == "linf" else Move
    return (
        kind(points.clean, points.current, draws[query - first : end - first], side, threat.epsilon),
        query,
        end,
    )


def window_side(query: int, height: int, width: int, at_least: int) -> int:
    """Side of the windows of the ``query``-th change (from 1), pixels; it always has room to move."""
    share = FIRST_SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    room = min(height, width)
    return min(max(min(round(sqrt(share * height * width)), room - 1), at_least), room)
