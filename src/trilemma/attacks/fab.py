"""FAB: steps to the linearised decision boundary, drawn to the clean image (Croce and Hein 2020, arXiv 1907.02044).

One step, with ``m`` the margin ``z_s - z_y`` of another class s over the label, and ``H`` the hyperplane where its
linearisation at ``x`` is zero:

    ``d = proj_H(x) - x``, ``d_0 = proj_H(x_0) - x_0``, ``a = min(|d| / (|d| + |d_0|), alpha_max)``
    ``x <- clip((1 - a) (x + eta d) + a (x_0 + eta d_0))``, and where that is misclassified
    ``x <- (1 - beta) x_0 + beta x``
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot

from trilemma import noise
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.hyperplane import displacement
from trilemma.attacks.margins import is_wrong, likeliest_others, margin
from trilemma.classifier.classifier import Classifier, check_labels
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import ConfigError
from trilemma.threat import Threat

ALPHA_MAX = 0.1
ETA = 1.05
BETA = 0.9
FINAL_STEPS = 3
# The final search stays this share of its bracket outside the estimated boundary, where rounding does not matter.
_OUTSIDE = 0.01
_TINY = 1e-30
# Values that a step works on at once on a CPU, so that its temporaries stay in the cache.
_BLOCK = 2**18


def fab(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    steps: int = 100,
    targets: int | None = 9,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Looks for the nearest misclassified image, and stops at the first one inside the ball.

    Args:
        clf: the classifier; left exactly as it was.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        steps: of each walk, of which there is one per target.
        targets: how many other classes are tried, each by its own walk, those of the highest clean logits (at most
            K - 1); ``None`` for the untargeted form, one walk to the nearest of all K - 1 hyperplanes, at K - 1
            backward passes a step.
        generator: taken for the sake of a common signature; the one start is the image itself.

    Returns:
        ``[N, C, H, W]`` inside the ball and [0, 1]: misclassified where that succeeded, else the nearest misclassified
        image that was met, cut to the ball (the image itself where none was met).

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: steps below 0 or targets below 1.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    if steps < 0 or (targets is not None and targets < 1):
        raise ConfigError(
            f"fab: steps={steps}, targets={targets}; steps must be at least 0, targets at least 1 or None"
        )
    seeds = noise.image_seeds(len(images), generator, images.device)
    final = images.clone()
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf, batch_size=max(1, len(images)))
        living = (~is_wrong(oracle.logits(images), labels)).nonzero().squeeze(1)
        final[living] = search(
            oracle, images[living], labels[living], threat, seeds[living], steps=steps, targets=targets
        )
    return final


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
    """:func:`fab` of correctly classified images, inside ``inner_loop``; ``seeds`` are not used.

    The network sees ``n * targets`` images at a time.
    """
    if not len(images):
        return images
    found, distance = nearest_adversarial(
        oracle, images, labels, threat.norm, steps=steps, targets=targets, radius=threat.epsilon
    )
    inside = (distance <= threat.epsilon).view(-1, *[1] * (images.dim() - 1))
    return torch.where(inside, found, threat.project(found, images))


@dataclass
class _Walks:
    """``T`` walks for each of ``m`` points, and the nearest misclassified image each has met; images are flat.

    Attributes:
        point: int64 ``[m]``, the row of each point in the batch handed in.
        labels: int64 ``[m]``.
        clean: ``[m, 1, D]``, and ``clean_margin [m, 1]``, below 0.
        candidates: int64 ``[m, T, M]``, the classes whose boundaries a walk looks at.
        here: ``[m, T, D]``, the iterates.
        best: ``[m, T, D]``, and ``best_margin [m, T]``; the clean ones where there is none yet.
        distance: ``[m, T]`` from the clean image to ``best``; infinite where there is none yet.
    """

    point: Tensor
    labels: Tensor
    clean: Tensor
    clean_margin: Tensor
    candidates: Tensor
    here: Tensor
    best: Tensor
    best_margin: Tensor
    distance: Tensor

    def keep(self, points: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[points])

    def nearest(self) -> tuple[Tensor, Tensor]:
        """The best of all walks of each point: ``[m, D]`` and ``[m]``."""
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
    """The nearest misclassified images met, ``[n, C, H, W]``, and their distances ``[n]`` in ``norm``.

    A point stops at the first one within ``radius``; with radius 0 it never stops. Where none was met: the clean
    image, at an infinite distance.
    """
    shape = images.shape[1:]
    found, distance = images.flatten(1).clone(), images.new_full((len(images),), torch.inf)
    walks = _start(oracle, images, labels, targets)
    for _ in range(steps):
        if not len(walks.point):
            break
        there, away = _advance(oracle, walks, shape, norm)
        wrong, _ = _look(oracle, walks, there, away, shape)
        kept = torch.where(wrong, BETA, 1.0)
        walks.here = torch.lerp(walks.clean, there, kept[..., None])
        done = (walks.distance <= radius).any(1)
        if bool(done.any()):
            best, away = walks.nearest()
            found[walks.point[done]], distance[walks.point[done]] = best[done], away[done]
            walks.keep(~done)
    if len(walks.point):
        _sharpen(oracle, walks, shape, norm)
        found[walks.point], distance[walks.point] = walks.nearest()
    return found.view_as(images), distance


def _start(oracle: Oracle, images: Tensor, labels: Tensor, targets: int | None) -> _Walks:
    logits = oracle.logits(images)
    others = logits.shape[1] - 1
    candidates = likeliest_others(logits, labels, others if targets is None else min(targets, others))
    candidates = candidates[:, None, :] if targets is None else candidates[:, :, None]
    clean, clean_margin = images.flatten(1)[:, None], margin(logits, labels)[:, None]
    walks = candidates.shape[:2]
    here = clean.expand(-1, walks[1], -1)
    point = torch.arange(len(images), device=images.device)
    distance = images.new_full(walks, torch.inf)
    return _Walks(
        point,
        labels,
        clean,
        clean_margin,
        candidates,
        here,
        here.clone(),
        clean_margin.expand(walks),
        distance,
    )


def _advance(oracle: Oracle, walks: _Walks, shape: torch.Size, norm: str) -> tuple[Tensor, Tensor]:
    """Where one step takes every walk, ``[m, T, D]``, and how far from the clean image that is, ``[m, T]``."""
    value, normal = _nearest_hyperplane(oracle, walks, shape, norm)
    count = max(1, _BLOCK // normal[0].numel()) if normal.device.type == "cpu" else len(normal)
    blocks = zip(*(part.split(count) for part in (walks.here, walks.clean, value, normal)), strict=True)
    steps = [_step(here, clean, at, weights, norm) for here, clean, at, weights in blocks]
    return torch.cat([there for there, _ in steps]), torch.cat([away for _, away in steps])


def _step(here: Tensor, clean: Tensor, value: Tensor, normal: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """:func:`_advance` of some points, given the nearest hyperplane of each of their walks."""
    move = displacement(here, normal, value, norm)
    clean_move = displacement(clean, normal, value + vecdot(normal, clean - here), norm)
    own, clean_own = _length(move, norm), _length(clean_move, norm)
    pull = (own / (own + clean_own).clamp_min(_TINY)).clamp_max(ALPHA_MAX)[..., None]
    ahead, near = torch.add(here, move, alpha=ETA), torch.add(clean, clean_move, alpha=ETA)
    there = torch.lerp(ahead, near, pull).clamp_(0.0, 1.0)
    return there, _length(there - clean, norm)


def _nearest_hyperplane(oracle: Oracle, walks: _Walks, shape: torch.Size, norm: str) -> tuple[Tensor, Tensor]:
    """Value ``[m, T]`` and gradient ``[m, T, D]`` of the margin whose linearised zero is nearest to each iterate.

    The distance to a hyperplane is ``|value| / |gradient|`` in the dual norm.
    """
    here, classes = walks.here.reshape(-1, *shape), walks.candidates.flatten(0, 1)
    labels = walks.labels.repeat_interleave(walks.here.shape[1])[:, None]
    values, _, gradients = oracle.gradient(
        here, lambda logits: logits.gather(1, classes) - logits.gather(1, labels)
    )
    if classes.shape[1] == 1:
        return values.view(walks.here.shape[:2]), gradients.reshape(walks.here.shape)
    normals = gradients.flatten(2)
    nearest = (values.abs() / _dual(normals, norm).clamp_min(_TINY)).argmin(1)
    row = torch.arange(len(here), device=here.device)
    return values[row, nearest].view(walks.here.shape[:2]), normals[row, nearest].view(walks.here.shape)


def _look(
    oracle: Oracle, walks: _Walks, there: Tensor, away: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Which of the images ``[m, T, D]`` are misclassified, and their margins; the nearest of each walk is kept."""
    labels = walks.labels.repeat_interleave(there.shape[1])
    logits = oracle.logits(there.view(-1, *shape))
    wrong, height = is_wrong(logits, labels).view_as(away), margin(logits, labels).view_as(away)
    nearer = wrong & (away < walks.distance)
    walks.best[nearer] = there[nearer]
    walks.best_margin = torch.where(nearer, height, walks.best_margin)
    walks.distance = torch.where(nearer, away, walks.distance)
    return wrong, height


def _sharpen(oracle: Oracle, walks: _Walks, shape: torch.Size, norm: str) -> None:
    """The final search (eq. 11): where on the segment to the clean image does the margin vanish? Regula falsi."""
    ray = walks.best - walks.clean
    inner, outer = torch.zeros_like(walks.distance), torch.ones_like(walks.distance)
    low, high = walks.clean_margin.expand_as(inner), walks.best_margin
    for _ in range(FINAL_STEPS):
        boundary = outer - high * (outer - inner) / (high - low).clamp_min(_TINY)
        middle = torch.lerp(boundary.minimum(outer), outer, _OUTSIDE)
        there = walks.clean + middle[..., None] * ray
        wrong, height = _look(oracle, walks, there, _length(there - walks.clean, norm), shape)
        inner, low = torch.where(wrong, inner, middle), torch.where(wrong, low, height)
        outer, high = torch.where(wrong, middle, outer), torch.where(wrong, height, high)


def _length(moves: Tensor, norm: str) -> Tensor:
    return moves.abs().amax(-1) if norm == "linf" else moves.norm(dim=-1)


def _dual(weights: Tensor, norm: str) -> Tensor:
    return weights.abs().sum(-1) if norm == "linf" else weights.norm(dim=-1)
