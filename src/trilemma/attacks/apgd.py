"""Auto-PGD: ascent with momentum that sets its own step size (Croce and Hein 2020, arXiv 2003.01690, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.attacks import margins
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.classifier import Classifier, check_labels
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import ConfigError
from trilemma.threat import Threat, image_norm

MOMENTUM = 0.75
RHO = 0.75
TARGETS = 9
# Most images fall to their first target; the others share a batch only for those that did not.
_ALONE = 1

# (logits [m, K], labels [m], targets [m]) to values [m]
_Value = Callable[[Tensor, Tensor, Tensor], Tensor]
_VALUES: dict[str, _Value] = {
    "ce": lambda logits, labels, _: energies.cross_entropy(logits, labels),
    "dlr": lambda logits, labels, _: margins.dlr(logits, labels),
    "dlr-targeted": margins.targeted_dlr,
    "margin-targeted": margins.targeted_margin,
}
_CLASSES_NEEDED: dict[str, int] = {"ce": 2, "dlr": 3, "dlr-targeted": 4, "margin-targeted": 2}


def apgd(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    loss: str = "ce",
    steps: int = 100,
    targets: int | None = None,
    generator: torch.Generator | None = None,
    *,
    early_stop: bool = True,
) -> Tensor:
    """Per image the first misclassified point of the walk, or the one of highest loss if there is none.

    Images that are misclassified as they are come back unchanged. Each image has its own random numbers, so the result
    does not depend on the batch.

    Args:
        clf: the classifier; left exactly as it was, attacked in eval mode.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius.
        loss: what is climbed. ``"ce"``: cross-entropy; ``"dlr"``: difference of logits ratio; ``"dlr-targeted"`` and
            ``"margin-targeted"`` (``z_t - z_y``): one walk for each of the likeliest other classes.
        steps: gradient steps of each walk.
        targets: number of target classes of a targeted loss, at most K - 1; 9 by default.
        generator: source of the random starts.
        early_stop: an image stops at its first misclassified point, just behind the boundary; without it every walk is
            made to its end, and the image of highest loss comes back, misclassified or not.

    Returns:
        Images ``[N, C, H, W]``, inside the ball and [0, 1].

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
        ConfigError: an unknown loss, one that needs more classes, or counts out of range.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    count = _check(loss, steps, targets, clf.num_classes)
    seeds = noise.image_seeds(len(images), generator, images.device)
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf, batch_size=max(1, len(images)))
        living = (~margins.is_wrong(oracle.logits(images), labels)).nonzero().squeeze(1)
        found = images.clone()
        found[living] = search(
            oracle,
            images[living],
            labels[living],
            threat,
            seeds[living],
            loss=loss,
            steps=steps,
            targets=count,
            early_stop=early_stop,
        )
    return found


def apgd_targeted(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    steps: int = 100,
    targets: int | None = None,
    *,
    generator: torch.Generator | None = None,
    early_stop: bool = True,
) -> Tensor:
    """:func:`apgd` on the targeted DLR, or on its numerator ``z_t - z_y`` with fewer than 4 classes."""
    loss = "dlr-targeted" if clf.num_classes >= _CLASSES_NEEDED["dlr-targeted"] else "margin-targeted"
    return apgd(clf, images, labels, threat, loss, steps, targets, generator, early_stop=early_stop)


def _check(loss: str, steps: int, targets: int | None, num_classes: int) -> int:
    """The number of targets, 1 for a loss that has none.

    Raises:
        ConfigError: naming the argument and what it may be.
    """
    if loss not in _VALUES:
        raise ConfigError(f"apgd: loss={loss!r} is unknown; choose one of {', '.join(_VALUES)}")
    if num_classes < (needed := _CLASSES_NEEDED[loss]):
        raise ConfigError(
            f"apgd: loss={loss!r} needs at least {needed} classes, the classifier has {num_classes}; "
            "use 'ce' or 'margin-targeted'"
        )
    if steps < 0:
        raise ConfigError(f"apgd: steps={steps}; must be at least 0")
    if not loss.endswith("-targeted"):
        if targets is not None:
            raise ConfigError(f"apgd: targets={targets} given, but loss={loss!r} has none")
        return 1
    if targets is not None and targets < 1:
        raise ConfigError(f"apgd: targets={targets}; must be at least 1")
    return min(targets or TARGETS, num_classes - 1)


def checkpoints(steps: int) -> list[int]:
    """The iterations at which the step size is judged: 0, 22, 41, 57, 70, 80, 87, 93, 99 of 100."""
    before, here, found = 0.0, 0.22, [0]
    while (iteration := math.ceil(round(here * steps, 6))) < steps:
        if iteration > found[-1]:  # few steps may round two of them to one
            found.append(iteration)
        before, here = here, here + max(here - before - 0.03, 0.06)
    return found


def search(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seeds: Tensor,
    *,
    loss: str,
    steps: int,
    targets: int = 1,
    early_stop: bool = True,
) -> Tensor:
    """Walks from correctly classified ``images``; with ``early_stop`` a point's walks end once one of them breaks it.

    Returns:
        The first misclassified point, or the point of highest loss over all walks. ``[n, C, H, W]``.
    """
    found, score = images.clone(), images.new_full((len(images),), -torch.inf)
    classes = labels[:, None]
    if loss.endswith("-targeted"):
        logits = oracle.logits(images)
        classes = margins.likeliest_others(logits, labels, min(targets, logits.shape[1] - 1))
    standing = torch.arange(len(images), device=images.device)
    for orders in torch.arange(classes.shape[1]).split([_ALONE, classes.shape[1] - _ALONE]):
        if len(orders) == 0 or len(standing) == 0:
            continue
        starts = [_start(threat, images[standing], noise.derive(seeds[standing], k)) for k in orders.tolist()]
        point = standing.repeat_interleave(len(orders))
        walks = _Walks.begin(
            point, images[point], labels[point], classes[standing][:, orders].flatten(),
            torch.stack(starts, 1).flatten(0, 1), 2 * threat.epsilon,
        )  # fmt: skip
        _climb(oracle, threat, walks, _VALUES[loss], steps, found if early_stop else None)
        standing = walks.point[:: len(orders)]
        value, walk = walks.best_value.view(-1, len(orders)).max(1)
        better = value > score[standing]
        best = walks.best.unflatten(0, (-1, len(orders)))[torch.arange(len(standing)), walk]
        found[standing[better]], score[standing] = best[better], torch.where(better, value, score[standing])
    return found


@dataclass
class _Walks:
    """Walks that go on, one row each; those of one point lie next to each other, in the order of its targets.

    Attributes:
        point: int64 ``[m]``, the point's row in what was handed in.
        clean, label, target: of the point.
        here, before: the iterate and the one before it.
        value, gradient: of the loss at ``here``.
        best, best_value, best_gradient: the iterate of highest loss.
        step_size: pixel units, ``[m]``.
        increases: steps since the last checkpoint that raised the loss, ``[m]``.
        best_at_checkpoint, halved: at the last checkpoint, the highest loss and whether the step size was halved.
    """

    point: Tensor
    clean: Tensor
    label: Tensor
    target: Tensor
    here: Tensor
    before: Tensor
    value: Tensor
    gradient: Tensor
    best: Tensor
    best_value: Tensor
    best_gradient: Tensor
    step_size: Tensor
    increases: Tensor
    best_at_checkpoint: Tensor
    halved: Tensor

    @classmethod
    def begin(
        cls, point: Tensor, clean: Tensor, label: Tensor, target: Tensor, start: Tensor, step_size: float
    ) -> _Walks:
        """Walks that have not asked the classifier yet."""
        low, none = start.new_full((len(start),), -torch.inf), torch.zeros_like(point)
        return cls(
            point, clean, label, target, here=start, before=start, value=-low, gradient=start, best=start,
            best_value=low, best_gradient=start, step_size=torch.full_like(low, step_size), increases=none,
            best_at_checkpoint=low, halved=none.bool(),
        )  # fmt: skip

    def keep(self, rows: Tensor) -> None:
        """Leaves only the walks of ``rows``."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])

    def see(self, value: Tensor, gradient: Tensor) -> None:
        """Takes in the loss and its gradient at ``here``."""
        self.increases = self.increases + (value > self.value)
        self.value, self.gradient = value, gradient
        better = value > self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        self.best = _where(better, self.here, self.best)
        self.best_gradient = _where(better, gradient, self.best_gradient)

    def judge(self, gap: int) -> None:
        """At a checkpoint, ``gap`` steps after the last: a walk that stalls goes back to its best, at half the step."""
        too_few = self.increases < RHO * gap
        stuck = ~self.halved & (self.best_value == self.best_at_checkpoint)
        self.halved = too_few | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.here = _where(self.halved, self.best, self.here)
        self.gradient = _where(self.halved, self.best_gradient, self.gradient)
        self.value = torch.where(self.halved, self.best_value, self.value)
        self.best_at_checkpoint, self.increases = self.best_value, torch.zeros_like(self.increases)

    def move(self, threat: Threat, momentum: float) -> None:
        """``x_{k+1} = P(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1}))`` with ``z = P(x_k + step ascent(gradient))``."""
        size = self.step_size.view(-1, 1, 1, 1)
        z = threat.project(torch.addcmul(self.here, size, threat.ascent(self.gradient)), self.clean)
        if momentum < 1:
            z = torch.lerp(self.here, z, momentum).add_(self.here - self.before, alpha=1 - momentum)
            z = threat.project(z, self.clean)
        self.before, self.here = self.here, z


def _climb(
    oracle: Oracle, threat: Threat, walks: _Walks, value_of: _Value, steps: int, found: Tensor | None
) -> None:
    """Moves ``walks`` to their ends; a point that breaks is written to ``found``, if any, and leaves with its walks."""
    marks = checkpoints(steps)
    for step in range(steps + 1):

        def values_of(logits: Tensor) -> Tensor:
            return value_of(logits, walks.label, walks.target)

        if step < steps:
            value, logits, gradient = oracle.gradient(walks.here, values_of)
        else:  # nobody moves on from here
            logits = oracle.logits(walks.here)
            value, gradient = values_of(logits), walks.gradient
        if found is not None and bool((wrong := margins.is_wrong(logits, walks.label)).any()):
            broken = walks.point[wrong]
            first = torch.cat([broken.new_ones(1).bool(), broken[1:] != broken[:-1]])
            found[broken[first]] = walks.here[wrong][first]
            rows = (~torch.isin(walks.point, broken)).nonzero().squeeze(1)
            value, gradient = value[rows], gradient[rows]
            walks.keep(rows)
            if len(rows) == 0:
                return
        walks.see(value, gradient)
        if step < steps:
            if step in marks[1:]:
                walks.judge(step - marks[marks.index(step) - 1])
            walks.move(threat, 1.0 if step == 0 else MOMENTUM)


def _where(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows.view(-1, 1, 1, 1), one, other)


def _start(threat: Threat, images: Tensor, seeds: Tensor) -> Tensor:
    """A random direction of the length of the radius from each image, cut to the box."""
    shape = images.shape[1:]
    if threat.norm == "linf":
        direction = 2 * noise.uniform(seeds, 0, shape) - 1
        length = direction.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    else:
        direction = noise.normal(seeds, 0, shape)
        length = image_norm(direction)
    return threat.project(images + threat.epsilon * (direction / length).to(images), images)
