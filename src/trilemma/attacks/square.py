"""Square Attack: a black-box random search over square windows (Andriushchenko et al. 2020, arXiv 1912.00049)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.arguments import AnyThreat, attack_arguments
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.margins import is_wrong, margin
from trilemma.attacks.square_moves import DRAWS, Move, Moves, Recolour, bumps, stripes
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.wrap import Images, Labels, Network
from trilemma.threat import Threat
from trilemma.units import count

# Share of the image that a window covers at first, and the queries after which the share is halved.
FIRST_SHARE = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000)
# Queries whose random numbers are drawn at once.
CHUNK = 50
# Largest number of pixel values in the windows that are prepared at once.
PREPARED = 2**18


@torch.inference_mode(False)
def square(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    queries: int = 5000,
    generator: torch.Generator | None = None,
    *,
    norm: Any = None,
) -> Tensor:
    """Adversarial images by random search: a misclassified one, else that of lowest margin ``z_y - max_{i != y} z_i``.

    Each query redraws one square window of the perturbation and keeps the change if the margin falls (L-inf: the whole
    window at plus or minus the radius; L2: mass moves from one window to another). A window covers 0.8 of the image at
    first; this share is halved after queries 10, 50, 200, 500, 1000, 2000 and 4000, whatever ``queries`` is. No
    gradient is computed. Each image has its own random numbers, so the result does not depend on the batch.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode.
        queries: largest number of forward passes per image, including that of the start; an image stops when broken.
        generator: source of the windows and signs.

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1]. Images that are misclassified without attack
        are returned unchanged.

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: an invalid threat, or queries that are not a whole number above 0.
    """
    given = attack_arguments("square", clf, images, labels, threat, norm, generator)
    clf, images, labels, threat = given.clf, given.images, given.labels, given.threat
    queries = count("square", "queries", queries)
    if not len(images):
        return given.result(images)
    seeds = noise.image_seeds(len(images), generator, images.device)
    final = images.detach().clone()
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf)
        correct = (~is_wrong(oracle.logits(images), labels)).nonzero().squeeze(1)
        if len(correct):
            final[correct] = search(
                oracle, images[correct], labels[correct], threat, seeds[correct], queries=queries
            )
    return given.result(final)


@dataclass
class _Points:
    """The images that are not broken yet; ``clean`` and ``current`` have the same memory layout.

    Attributes:
        index: int64 ``[n]``, index of each image in the input batch.
        clean, current: the clean image and the best image so far, ``[n, C, H, W]``.
        margins: ``z_y - max_{i != y} z_i`` of ``current``, ``[n]``.
        labels, seeds: int64 ``[n]``.
    """

    index: Tensor
    clean: Tensor
    current: Tensor
    margins: Tensor
    labels: Tensor
    seeds: Tensor

    def select(self, subset: Tensor) -> None:
        """Drops all images except those at the indices ``subset``, int64."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[subset])


@torch.no_grad()
def search(
    oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor, *, queries: int
) -> Tensor:
    """:func:`square` on correctly classified images; call it inside ``inner_loop``."""
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
            moves.apply(query - begin)
        logits = oracle.logits(points.current)
        margins = -margin(logits, points.labels)
        better = margins < points.margins
        # Usually no image is near the boundary, and the exact check can be skipped.
        broken = is_wrong(logits, points.labels) if bool((~(margins > 0)).any()) else None
        if broken is not None:
            better |= broken
        if moves is not None:
            moves.accept(query - begin, better)
        points.margins = torch.where(better, margins, points.margins)
        if broken is not None and bool(broken.any()):
            final[points.index[broken]] = points.current[broken]
            points.select((~broken).nonzero().squeeze(1))
            moves = None
            if not len(points.index):
                break
    final[points.index] = points.current
    return threat.project(final, images)


def _next_moves(points: _Points, query: int, threat: Threat) -> tuple[Moves, int, int]:
    """The moves of queries ``begin`` to ``end - 1``, with ``begin`` (which is ``query``) and ``end``.

    The random numbers come in chunks that depend on the query alone, so that the numbers of an image do not depend on
    how many moves are prepared at once.
    """
    count, channels, height, width = points.clean.shape
    side = window_side(query, height, width, at_least=1 if threat.norm == "linf" else 3)
    first = (query - 1) // CHUNK * CHUNK + 1
    affordable = max(1, PREPARED // (count * channels * side**2))
    end = min(first + CHUNK, query + affordable, *(after + 1 for after in HALVED_AFTER if after >= query))
    draws = noise.uniform(points.seeds, first, (CHUNK, DRAWS + channels)).transpose(0, 1)
    kind = Recolour if threat.norm == "linf" else Move
    return (
        kind(points.clean, points.current, draws[query - first : end - first], side, threat.epsilon),
        query,
        end,
    )


def window_side(query: int, height: int, width: int, at_least: int) -> int:
    """Side in pixels of the windows of the ``query``-th move (counted from 1); smaller than the image if possible."""
    share = FIRST_SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    extent = min(height, width)
    return min(max(min(round(sqrt(share * height * width)), extent - 1), at_least), extent)
