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
from trilemma.attacks.square_moves import DRAWS, Candidates, Move, Moves, Recolour, bumps, stripes
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.winograd import FixedConvolution
from trilemma.classifier.wrap import Images, Labels, Network
from trilemma.threat import Threat
from trilemma.units import count

# Share of the image that a window covers at first, and the queries after which the share is halved.
FIRST_SHARE = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000)
# Queries whose random numbers are one stream of an image.
CHUNK = 50
# Largest number of random numbers that are drawn at once, and of pixel values in the windows of one pass.
DRAWN, PREPARED = 2**21, 2**18
# Largest number of candidates of one image in a pass, and of those that are looked up among the rejected ones.
MOST_AT_ONCE, MOST_LOOKED_UP = 32, 256
# A pass costs as much as this number of images, besides its images; less for wide networks, whose images take longer,
# and on an accelerator, where it is launched, more.
PASS_COST, PASS_COST_WIDE, PASS_COST_ON_ACCELERATOR = 16, 4, 2048
# Largest share of the evaluated candidates that is discarded, on average.
MOST_DISCARDED = 0.2
# A margin has fallen if it did by more than this share of the largest logit: less is the rounding of float32, which
# on networks that most windows do not affect would be most of the changes that are kept.
ROUNDING = 1e-6
# Candidates are remembered if there are at most this many of them per move, so that some recur.
MOST_KINDS_PER_MOVE = 8


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

    Each query redraws one square window of the perturbation and keeps the change if the margin falls by more than
    rounding (L-inf: the whole window at plus or minus the radius; L2: mass moves from one window to another). A window
    covers 0.8 of the image at first; this share is halved after queries 10, 50, 200, 500, 1000, 2000 and 4000, whatever
    ``queries`` is. No gradient is computed. Each image has its own random numbers, so the result does not depend on the
    batch.

    The network is taken to be a function of the image: a candidate that was rejected and recurs before the perturbation
    changes is not evaluated again, and one pass evaluates several candidates of an image, of which those after the
    first that is kept are discarded.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode.
        queries: number of candidates per image, including the start; an image stops when broken.
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
    """The images that are not broken yet.

    Attributes:
        index: int64 ``[n]``, index of each image in the input batch.
        clean, current: the clean image and the best image so far, contiguous ``[n, C, H, W]``.
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
    if not len(images) or queries < 1:
        return images
    clean = images.detach().contiguous()
    start = (stripes if threat.norm == "linf" else bumps)(clean, noise.derive(seeds, 0), threat.epsilon)
    start = start.contiguous()
    margins, _, broken = _margins(oracle, start, labels)
    index = torch.arange(len(images), device=images.device)
    points, final = _Points(index, clean, start, margins, labels, seeds), start.clone()
    points.select((~broken).nonzero().squeeze(1))
    query, rates = 1, _Rates(_pass_cost(oracle.clf))
    while query < queries and len(points.index):
        moves, query = _next_moves(points, query, queries, threat)
        broken = _Segment(oracle, points, moves, rates).run()
        final[points.index] = points.current
        points.select((~broken).nonzero().squeeze(1))
    return threat.project(final, images)


def _margins(oracle: Oracle, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The margins ``z_y - max_{i != y} z_i`` of images, their rounding, and whether each is misclassified; ``[n]``."""
    logits = oracle.logits(images)
    margins, rounding = -margin(logits, labels), ROUNDING * logits.abs().amax(1)
    # Usually no image is near the boundary, and the exact check can be skipped.
    if not bool((~(margins > 0)).any()):
        return margins, rounding, torch.zeros_like(labels, dtype=torch.bool)
    return margins, rounding, is_wrong(logits, labels)


@dataclass
class _Moves:
    """The prepared moves of some consecutive queries, which have windows of one size.

    Attributes:
        kind: the moves.
        count: number of moves per image.
        window: number of pixel values in a window.
    """

    kind: Moves
    count: int
    window: int


def _next_moves(points: _Points, query: int, queries: int, threat: Threat) -> tuple[_Moves, int]:
    """The moves from ``query`` on, of all queries that have the same window side if memory allows; and the next query.

    The random numbers come in chunks that depend on the query alone, so that the numbers of an image do not depend on
    how many moves are prepared at once.
    """
    count, channels, height, width = points.clean.shape
    side = window_side(query, height, width, at_least=1 if threat.norm == "linf" else 3)
    first = (query - 1) // CHUNK * CHUNK + 1
    chunks = max(1, DRAWN // (count * CHUNK * (DRAWS + channels)))
    end = min(first + chunks * CHUNK, queries, *(after + 1 for after in HALVED_AFTER if after >= query))
    draws = torch.cat(
        [noise.uniform(points.seeds, start, (CHUNK, DRAWS + channels)) for start in range(first, end, CHUNK)],
        1,
    )
    kind = Recolour if threat.norm == "linf" else Move
    moves = kind(points.clean, draws[:, query - first : end - first], side, threat.epsilon)
    return _Moves(moves, end - query, channels * side**2), end


@dataclass
class _Rates:
    """Running estimates by which the number of candidates per pass is chosen.

    Attributes:
        pass_cost: cost of a pass besides its images, in images.
        accepted: share of candidates that lower the margin.
        known: share of candidates that are known to be rejected.
    """

    pass_cost: int
    accepted: float = 0.5
    known: float = 0.0


def _pass_cost(clf: Classifier) -> int:
    """What a pass costs besides its images, in images."""
    if clf.device.type != "cpu":
        return PASS_COST_ON_ACCELERATOR
    wide = any(isinstance(module, FixedConvolution) for module in clf.network.modules())
    return PASS_COST_WIDE if wide else PASS_COST


class _Segment:
    """The search over the prepared moves, in which each image has its own next move.

    A pass evaluates the next candidates of each image, all changes of its current image. If one of them is better, the
    first of these is kept, and the image goes on with the move after it.

    Args:
        oracle, points, moves: ``points`` is changed in place.
        rates: estimates of the segments before, updated.
    """

    def __init__(self, oracle: Oracle, points: _Points, moves: _Moves, rates: _Rates) -> None:
        self.oracle, self.points, self.moves, self.rates = oracle, points, moves, rates
        self.next = torch.zeros_like(points.index)
        self.broken = torch.zeros_like(points.index, dtype=torch.bool)
        kinds = moves.kind.kinds
        # Per image, the candidates that were rejected since its last change.
        self.rejected: Tensor | None = None
        if kinds is not None and kinds <= MOST_KINDS_PER_MOVE * moves.count:
            self.rejected = self.broken.new_zeros(len(points.index), kinds)

    def run(self) -> Tensor:
        """Does all moves; returns whether each image was broken, bool ``[n]``."""
        while len(active := (self.next < self.moves.count).nonzero().squeeze(1)):
            self._pass(active)
        return self.broken

    def _candidates_at_once(self, count: int) -> int:
        """The number of candidates of each of ``count`` images in the next pass.

        With ``j`` evaluated candidates per image and acceptance rate ``p``, a pass costs ``1 + c / (count j)`` per
        candidate, and about the share ``p (j - 1) / 2`` of the candidates is discarded; the product is least at
        ``sqrt(2 c / (count p))``.
        """
        cost = self.rates.pass_cost
        rate = max(self.rates.accepted, 1e-3)
        evaluated = min(sqrt(2 * cost / (count * rate)), 1 + 2 * MOST_DISCARDED / rate, MOST_AT_ONCE)
        looked_up = min(evaluated / max(1 - self.rates.known, 1e-3), MOST_LOOKED_UP)
        affordable = PREPARED // (count * self.moves.window)
        return max(1, min(round(looked_up), affordable, self.moves.count))

    def _pass(self, active: Tensor) -> None:
        points, count = self.points, self._candidates_at_once(len(active))
        steps = self.next[active][:, None] + torch.arange(count, device=active.device)
        image, todo = active.repeat_interleave(count), (steps < self.moves.count).flatten()
        candidates = self.moves.kind.candidates(
            points.current, image, steps.clamp_max(self.moves.count - 1).flatten()
        )
        if self.rejected is not None:
            todo &= ~self.rejected[image, candidates.keys]
            # Those of an image that changes are forgotten below.
            self.rejected[image, candidates.keys] = True
        rows = todo.nonzero().squeeze(1)
        self.next[active] = steps[:, -1] + 1
        if len(rows):
            self._evaluate(image[rows], steps.flatten()[rows], candidates, rows)
        self.rates.known += (1 - len(rows) / len(image) - self.rates.known) / 4

    def _evaluate(self, image: Tensor, step: Tensor, candidates: Candidates, rows: Tensor) -> None:
        """Evaluates the candidates at ``rows``; ``image`` and ``step`` belong to them, ``[m]``."""
        points = self.points
        images = points.current[image]
        candidates.write(images, rows)
        margins, rounding, broken = _margins(self.oracle, images, points.labels[image])
        better = ((margins < points.margins[image] - rounding) | broken).nonzero().squeeze(1)
        if not len(better):
            self.rates.accepted -= self.rates.accepted / 8
            return
        # The rows of an image are adjacent, in the order of its moves: keep its first better one.
        place = image[better]
        first = better[torch.cat([place.new_ones(1).bool(), place[1:] != place[:-1]])]
        place = image[first]
        points.current[place], points.margins[place] = images[first], margins[first]
        self.next[place], self.broken[place] = step[first] + 1, broken[first]
        used = int((step < self.next[image]).sum())
        self.rates.accepted += (len(place) / used - self.rates.accepted) / 8
        # The end of the search of a broken image.
        self.next[place[broken[first]]] = self.moves.count
        if self.rejected is not None:
            self.rejected[place] = False


def window_side(query: int, height: int, width: int, at_least: int) -> int:
    """Side in pixels of the windows of the ``query``-th move (counted from 1); smaller than the image if possible."""
    share = FIRST_SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    extent = min(height, width)
    return min(max(min(round(sqrt(share * height * width)), extent - 1), at_least), extent)
