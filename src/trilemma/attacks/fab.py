"""FAB: steps to the linearised decision boundary, biased to the clean image (Croce and Hein 2020, arXiv 1907.02044).

One step from ``x``, where ``x_0`` is the clean image and ``H`` the hyperplane on which the linearisation at ``x`` of
the margin ``z_s - z_y`` of another class s over the label is zero:

    ``d = proj_H(x) - x``, ``d_0 = proj_H(x_0) - x_0``, ``a = min(|d| / (|d| + |d_0|), alpha_max)``
    ``x <- clip((1 - a) (x + eta d) + a (x_0 + eta d_0))``, and if that is misclassified
    ``x <- (1 - beta) x_0 + beta x``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from trilemma import noise
from trilemma.attacks.arguments import AnyThreat, attack_arguments
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.hyperplane import displacement
from trilemma.attacks.margins import is_wrong, likeliest_others, margin
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.wrap import Images, Labels, Network
from trilemma.threat import Threat
from trilemma.units import count

ALPHA_MAX = 0.1
ETA = 1.05
BETA = 0.9
FINAL_STEPS = 3
# The final search evaluates points beyond the estimated boundary, by this share of its bracket: safe from rounding.
_OUTSIDE = 0.01
# Lower bound of denominators.
_TINY = 1e-30
# Largest number of values that a step processes at once on a CPU, so that its temporaries stay in the cache.
_BLOCK = 2**18


@torch.inference_mode(False)
def fab(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    steps: int = 100,
    targets: int | None = 9,
    generator: torch.Generator | None = None,
    *,
    norm: Any = None,
) -> Tensor:
    """Adversarial images by FAB, which minimises the distance; an image stops at the first success inside the ball.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode.
        steps: steps of each walk; there is one walk per target.
        targets: number of target classes, those of the highest clean logits (at most K - 1); ``None`` for the
            untargeted form, one walk to the nearest of all K - 1 hyperplanes with K - 1 backward passes per step.
        generator: not used, as every walk starts at the clean image; an argument of all attacks.

    Returns:
        Images ``[N, C, H, W]`` inside the ball and [0, 1]: misclassified if the attack succeeded, otherwise the nearest
        misclassified image found, projected to the ball (the clean image if none was found).

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: an invalid threat, or numbers of a wrong type or range: steps below 0 or targets below 1.
    """
    given = attack_arguments("fab", clf, images, labels, threat, norm, generator)
    clf, images, labels, threat = given.clf, given.images, given.labels, given.threat
    steps = count("fab", "steps", steps, 0)
    targets = None if targets is None else count("fab", "targets", targets)
    if not len(images):
        return given.result(images)
    seeds = noise.image_seeds(len(images), generator, images.device)
    final = images.clone()
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf, batch_size=max(1, len(images)))
        correct = (~is_wrong(oracle.logits(images), labels)).nonzero().squeeze(1)
        final[correct] = search(
            oracle, images[correct], labels[correct], threat, seeds[correct], steps=steps, targets=targets
        )
    return given.result(final)


def search(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seeds: Tensor,
    *,
    steps: int,
    targets: int | None,
) -> Tensor:
    """:func:`fab` on correctly classified images; call it inside ``inner_loop``. ``seeds`` are not used.

    Each oracle call gets ``n * targets`` images.
    """
    if not len(images):
        return images
    nearest, distance = nearest_adversarial(
        oracle, images, labels, threat.norm, steps=steps, targets=targets, radius=threat.epsilon
    )
    inside = (distance <= threat.epsilon).view(-1, *[1] * (images.dim() - 1))
    return torch.where(inside, nearest, threat.project(nearest, images))


@dataclass
class _Walks:
    """``T`` walks for each of ``m`` images, flattened to ``D`` values.

    Attributes:
        index: int64 ``[m]``, the index of each image in the input batch.
        labels: int64 ``[m]``.
        clean, clean_margin: clean image ``[m, 1, D]``, and its margin ``[m, 1]``, which is negative.
        candidates: int64 ``[m, T, M]``, the classes whose decision boundaries a walk considers.
        iterate: ``[m, T, D]``.
        best, best_margin: nearest misclassified image so far ``[m, T, D]``, and its margin ``[m, T]``; the clean image
            and its margin if there is none.
        distance: distance of ``best`` from the clean image, ``[m, T]``; infinite if there is none.
    """

    index: Tensor
    labels: Tensor
    clean: Tensor
    clean_margin: Tensor
    candidates: Tensor
    iterate: Tensor
    best: Tensor
    best_margin: Tensor
    distance: Tensor

    def select(self, mask: Tensor) -> None:
        """Drops all images except those where ``mask``, bool ``[m]``, is true."""
        for name, value in vars(self).items():
            setattr(self, name, value[mask])

    def nearest(self) -> tuple[Tensor, Tensor]:
        """``best`` of the nearest walk of each image, ``[m, D]``, and its distance, ``[m]``."""
        distance, walk = self.distance.min(1)
        return self.best[torch.arange(len(walk), device=walk.device), walk], distance


def nearest_adversarial(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    norm: str,
    *,
    steps: int,
    targets: int | None,
    radius: float,
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified images found, ``[n, C, H, W]``, and their distances ``[n]`` in ``norm``.

    An image stops at the first one within ``radius``; with radius 0 it never stops. If none is found, the clean image
    is returned, with an infinite distance.
    """
    shape = images.shape[1:]
    nearest, distance = images.flatten(1).clone(), images.new_full((len(images),), torch.inf)
    walks = _start(oracle, images, labels, targets)
    for _ in range(steps):
        if not len(walks.index):
            break
        points, distances = _advance(oracle, walks, shape, norm)
        wrong, _ = _evaluate(oracle, walks, points, distances, shape)
        weight = torch.where(wrong, BETA, 1.0).to(points.dtype)
        walks.iterate = torch.lerp(walks.clean, points, weight[..., None])
        done = (walks.distance <= radius).any(1)
        if bool(done.any()):
            best, best_distance = walks.nearest()
            nearest[walks.index[done]], distance[walks.index[done]] = best[done], best_distance[done]
            walks.select(~done)
    if len(walks.index):
        _final_search(oracle, walks, shape, norm)
        nearest[walks.index], distance[walks.index] = walks.nearest()
    return nearest.view_as(images), distance


def _start(oracle: Oracle, images: Tensor, labels: Tensor, targets: int | None) -> _Walks:
    """Walks at the clean images, with their candidate classes chosen by the clean logits."""
    logits = oracle.logits(images)
    others = logits.shape[1] - 1
    candidates = likeliest_others(logits, labels, others if targets is None else min(targets, others))
    candidates = candidates[:, None, :] if targets is None else candidates[:, :, None]
    clean, clean_margin = images.flatten(1)[:, None], margin(logits, labels)[:, None]
    shape = candidates.shape[:2]
    iterate = clean.expand(-1, shape[1], -1)
    index = torch.arange(len(images), device=images.device)
    distance = images.new_full(shape, torch.inf)
    return _Walks(
        index,
        labels,
        clean,
        clean_margin,
        candidates,
        iterate,
        iterate.clone(),
        clean_margin.expand(shape),
        distance,
    )


def _advance(oracle: Oracle, walks: _Walks, shape: torch.Size, norm: str) -> tuple[Tensor, Tensor]:
    """The points after one step of every walk, ``[m, T, D]``, and their distances from the clean image, ``[m, T]``."""
    value, normal = _nearest_hyperplane(oracle, walks, shape, norm)
    count = max(1, _BLOCK // normal[0].numel()) if normal.device.type == "cpu" else len(normal)
    blocks = zip(*(part.split(count) for part in (walks.iterate, walks.clean, value, normal)), strict=True)
    steps = [_step(iterate, clean, value, normal, norm) for iterate, clean, value, normal in blocks]
    return torch.cat([points for points, _ in steps]), torch.cat([distances for _, distances in steps])


def _step(iterate: Tensor, clean: Tensor, value: Tensor, normal: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """:func:`_advance` of some images, given value and gradient of the margin of each walk's nearest hyperplane."""
    move = displacement(iterate, normal, value, norm)
    clean_move = displacement(clean, normal, value + vecdot(normal, clean - iterate), norm)
    length, clean_length = _length(move, norm), _length(clean_move, norm)
    alpha = (length / (length + clean_length).clamp_min(_TINY)).clamp_max(ALPHA_MAX)[..., None]
    from_iterate, from_clean = torch.add(iterate, move, alpha=ETA), torch.add(clean, clean_move, alpha=ETA)
    points = torch.lerp(from_iterate, from_clean, alpha).clamp_(0.0, 1.0)
    return points, _length(points - clean, norm)


def _nearest_hyperplane(oracle: Oracle, walks: _Walks, shape: torch.Size, norm: str) -> tuple[Tensor, Tensor]:
    """The margin whose linearised zero is nearest to each iterate: value ``[m, T]`` and gradient ``[m, T, D]``.

    The distance to a hyperplane is ``|value| / |gradient|`` in the dual norm.
    """
    points, classes = walks.iterate.reshape(-1, *shape), walks.candidates.flatten(0, 1)
    labels = walks.labels.repeat_interleave(walks.iterate.shape[1])[:, None]
    values, _, gradients = oracle.gradient(
        points, lambda logits: logits.gather(1, classes) - logits.gather(1, labels)
    )
    if classes.shape[1] == 1:
        return values.view(walks.iterate.shape[:2]), gradients.reshape(walks.iterate.shape)
    normals = gradients.flatten(2)
    nearest = (values.abs() / _dual_norm(normals, norm).clamp_min(_TINY)).argmin(1)
    index = torch.arange(len(points), device=points.device)
    value, normal = values[index, nearest], normals[index, nearest]
    return value.view(walks.iterate.shape[:2]), normal.view(walks.iterate.shape)


def _evaluate(
    oracle: Oracle, walks: _Walks, points: Tensor, distances: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Whether each of the points ``[m, T, D]`` is misclassified, and its margin, both ``[m, T]``; updates ``best``."""
    labels = walks.labels.repeat_interleave(points.shape[1])
    logits = oracle.logits(points.view(-1, *shape))
    wrong, margins = is_wrong(logits, labels).view_as(distances), margin(logits, labels).view_as(distances)
    nearer = wrong & (distances < walks.distance)
    walks.best[nearer] = points[nearer]
    walks.best_margin = torch.where(nearer, margins, walks.best_margin)
    walks.distance = torch.where(nearer, distances, walks.distance)
    return wrong, margins


def _final_search(oracle: Oracle, walks: _Walks, shape: torch.Size, norm: str) -> None:
    """The final search (eq. 11): regula falsi for the zero of the margin between the clean image and ``best``."""
    ray = walks.best - walks.clean
    inner, outer = torch.zeros_like(walks.distance), torch.ones_like(walks.distance)
    inner_margin, outer_margin = walks.clean_margin.expand_as(inner), walks.best_margin
    for _ in range(FINAL_STEPS):
        slope = (outer_margin - inner_margin).clamp_min(_TINY)
        boundary = outer - outer_margin * (outer - inner) / slope
        middle = torch.lerp(boundary.minimum(outer), outer, _OUTSIDE)
        points = walks.clean + middle[..., None] * ray
        wrong, margins = _evaluate(oracle, walks, points, _length(points - walks.clean, norm), shape)
        inner, inner_margin = torch.where(wrong, inner, middle), torch.where(wrong, inner_margin, margins)
        outer, outer_margin = torch.where(wrong, middle, outer), torch.where(wrong, margins, outer_margin)


def _length(moves: Tensor, norm: str) -> Tensor:
    """The norm of each vector, ``[..., D]`` to ``[...]``."""
    return moves.abs().amax(-1) if norm == "linf" else moves.norm(dim=-1)


def _dual_norm(weights: Tensor, norm: str) -> Tensor:
    """The dual norm of each vector, ``[..., D]`` to ``[...]``."""
    return weights.abs().sum(-1) if norm == "linf" else weights.norm(dim=-1)
