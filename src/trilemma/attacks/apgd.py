"""Auto-PGD: gradient ascent with adaptive step size and momentum (Croce and Hein 2020, arXiv 2003.01690, alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.attacks import margins
from trilemma.attacks.arguments import AnyThreat, attack_arguments
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.wrap import Images, Labels, Network
from trilemma.errors import ConfigError
from trilemma.threat import Threat, image_norm
from trilemma.units import choice, count

MOMENTUM = 0.75
RHO = 0.75
TARGETS = 9
# Most images are broken with their first target, so it gets a batch of its own; the other targets share one.
_FIRST_TARGETS = 1

# (logits [m, K], labels [m], targets [m]) -> loss [m]
_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
_LOSSES: dict[str, _Loss] = {
    "ce": lambda logits, labels, _: energies.cross_entropy(logits, labels),
    "dlr": lambda logits, labels, _: margins.dlr(logits, labels),
    "dlr-targeted": margins.targeted_dlr,
    "margin-targeted": margins.targeted_margin,
}
_CLASSES_NEEDED: dict[str, int] = {"ce": 2, "dlr": 3, "dlr-targeted": 4, "margin-targeted": 2}


@torch.inference_mode(False)
def apgd(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    loss: str = "ce",
    steps: int = 100,
    targets: int | None = None,
    generator: torch.Generator | None = None,
    *,
    norm: Any = None,
    early_stop: bool = True,
    expectation: int = 1,
) -> Tensor:
    """Adversarial images by Auto-PGD: the first misclassified iterate, or that of highest loss if there is none.

    Images that are misclassified without attack are returned unchanged. Each image has its own random numbers, so the
    result does not depend on the batch.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode.
        loss: the loss to maximise. ``"ce"``: cross-entropy; ``"dlr"``: difference of logits ratio; ``"dlr-targeted"``
            and ``"margin-targeted"`` (``z_t - z_y``): one walk for each of the likeliest other classes.
        steps: gradient steps of each walk.
        targets: number of target classes of a targeted loss, at most K - 1; 9 by default.
        generator: source of the random starts.
        early_stop: stop an image at its first misclassified iterate, just behind the decision boundary; otherwise
            all steps are done, and the iterate of highest loss is returned, misclassified or not.
        expectation: number of forward passes whose mean loss, gradient and logits are used, for networks with random
            forward passes (expectation over transformations; 20 in the paper). Their random numbers are torch's own.

    Returns:
        Images ``[N, C, H, W]``, inside the ball and [0, 1], as of :func:`trilemma.attacks.pgd.pgd`.

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: an unknown loss, a loss that needs more classes, an invalid threat, or counts of a wrong type or
            range.
    """
    given = attack_arguments("apgd", clf, images, labels, threat, norm, generator)
    clf, images, labels, threat = given.clf, given.images, given.labels, given.threat
    steps, expectation = count("apgd", "steps", steps, 0), count("apgd", "expectation", expectation)
    target_count = _targets(loss, targets, clf.num_classes)
    if not len(images):
        return given.result(images)
    seeds = noise.image_seeds(len(images), generator, images.device)
    with inner_loop(clf, "eval"):
        oracle = Oracle(clf, batch_size=max(1, len(images)), expectation=expectation)
        correct = (~margins.is_wrong(oracle.logits(images), labels)).nonzero().squeeze(1)
        adversarial = images.clone()
        adversarial[correct] = search(
            oracle,
            images[correct],
            labels[correct],
            threat,
            seeds[correct],
            loss=loss,
            steps=steps,
            targets=target_count,
            early_stop=early_stop,
        )
    return given.result(adversarial)


def apgd_targeted(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    steps: int = 100,
    targets: int | None = None,
    *,
    norm: Any = None,
    generator: torch.Generator | None = None,
    early_stop: bool = True,
) -> Tensor:
    """:func:`apgd` with the targeted DLR loss, or with its numerator ``z_t - z_y`` for fewer than 4 classes."""
    given = attack_arguments("apgd", clf, images, labels, threat, norm, generator)
    enough = given.clf.num_classes >= _CLASSES_NEEDED["dlr-targeted"]
    loss = "dlr-targeted" if enough else "margin-targeted"
    return apgd(
        given.clf, images, labels, given.threat, loss, steps, targets, generator, early_stop=early_stop
    )


def _targets(loss: str, targets: int | None, num_classes: int) -> int:
    """Checks loss and targets; returns the number of targets, 1 for an untargeted loss.

    Raises:
        ConfigError: an unknown loss, too few classes, or targets of a wrong type or range.
    """
    choice("apgd", "loss", loss, list(_LOSSES))
    if num_classes < (needed := _CLASSES_NEEDED[loss]):
        raise ConfigError(
            f"apgd: loss={loss!r} needs at least {needed} classes, the classifier has {num_classes}; "
            "use 'ce' or 'margin-targeted'"
        )
    targets = None if targets is None else count("apgd", "targets", targets)
    if not loss.endswith("-targeted"):
        if targets is not None:
            raise ConfigError(f"apgd: targets={targets}, but loss={loss!r} has no targets; leave targets out")
        return 1
    return min(TARGETS if targets is None else targets, num_classes - 1)


def checkpoints(steps: int) -> list[int]:
    """The iterations at which the step size may be halved: 0, 22, 41, 57, 70, 80, 87, 93, 99 for 100 steps."""
    previous, share, iterations = 0.0, 0.22, [0]
    while (iteration := math.ceil(round(share * steps, 6))) < steps:
        # With few steps, two checkpoints may round to the same iteration.
        if iteration > iterations[-1]:
            iterations.append(iteration)
        previous, share = share, share + max(share - previous - 0.03, 0.06)
    return iterations


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
    """:func:`apgd` on correctly classified images; call it inside ``inner_loop``.

    With ``early_stop``, all walks of an image end as soon as one of them breaks it.

    Returns:
        The first misclassified iterate, or the iterate of highest loss over all walks, ``[n, C, H, W]``.
    """
    adversarial, score = images.clone(), images.new_full((len(images),), -torch.inf)
    classes = labels[:, None]
    if loss.endswith("-targeted"):
        logits = oracle.logits(images)
        classes = margins.likeliest_others(logits, labels, min(targets, logits.shape[1] - 1))
    remaining = torch.arange(len(images), device=images.device)
    for orders in torch.arange(classes.shape[1]).split([_FIRST_TARGETS, classes.shape[1] - _FIRST_TARGETS]):
        if len(orders) == 0 or len(remaining) == 0:
            continue
        starts = [
            _start(threat, images[remaining], noise.derive(seeds[remaining], k)) for k in orders.tolist()
        ]
        index = remaining.repeat_interleave(len(orders))
        walks = _Walks.begin(
            index, images[index], labels[index], classes[remaining][:, orders].flatten(),
            torch.stack(starts, 1).flatten(0, 1), 2 * threat.epsilon,
        )  # fmt: skip
        _climb(oracle, threat, walks, _LOSSES[loss], steps, adversarial if early_stop else None)
        remaining = walks.index[:: len(orders)]
        value, walk = walks.best_value.view(-1, len(orders)).max(1)
        better = value > score[remaining]
        best = walks.best.unflatten(0, (-1, len(orders)))[torch.arange(len(remaining)), walk]
        adversarial[remaining[better]] = best[better]
        score[remaining] = torch.where(better, value, score[remaining])
    return adversarial


@dataclass
class _Walks:
    """The unfinished walks; those of one image are adjacent, in the order of its targets.

    Attributes:
        index: int64 ``[m]``, the index of each walk's image in the input batch.
        clean, label, target: clean image ``[m, C, H, W]``, label and target class ``[m]``.
        iterate, previous: the iterate and the one before it, ``[m, C, H, W]``.
        value, gradient: loss ``[m]`` at ``iterate``, and its gradient ``[m, C, H, W]``.
        best, best_value, best_gradient: the iterate of highest loss, its loss and gradient.
        step_size: in pixel units, ``[m]``.
        increases: number of steps since the last checkpoint that raised the loss, ``[m]``.
        best_at_checkpoint, halved: the highest loss at the last checkpoint, and whether the step size was halved there.
    """

    index: Tensor
    clean: Tensor
    label: Tensor
    target: Tensor
    iterate: Tensor
    previous: Tensor
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
        cls, index: Tensor, clean: Tensor, label: Tensor, target: Tensor, start: Tensor, step_size: float
    ) -> _Walks:
        """Walks at their starts, before the first forward pass."""
        lowest, none = start.new_full((len(start),), -torch.inf), torch.zeros_like(index)
        return cls(
            index, clean, label, target, iterate=start, previous=start, value=-lowest, gradient=start, best=start,
            best_value=lowest, best_gradient=start, step_size=torch.full_like(lowest, step_size), increases=none,
            best_at_checkpoint=lowest, halved=none.bool(),
        )  # fmt: skip

    def select(self, subset: Tensor) -> None:
        """Drops all walks except those at the indices ``subset``, int64."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[subset])

    def update(self, value: Tensor, gradient: Tensor) -> None:
        """Records the loss and its gradient at ``iterate``."""
        self.increases = self.increases + (value > self.value)
        self.value, self.gradient = value, gradient
        better = value > self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        self.best = _where(better, self.iterate, self.best)
        self.best_gradient = _where(better, gradient, self.best_gradient)

    def adapt_step_size(self, gap: int) -> None:
        """At a checkpoint, ``gap`` steps after the last: halves the step size of stalled walks, back at their best."""
        too_few = self.increases < RHO * gap
        stuck = ~self.halved & (self.best_value == self.best_at_checkpoint)
        self.halved = too_few | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.iterate = _where(self.halved, self.best, self.iterate)
        self.gradient = _where(self.halved, self.best_gradient, self.gradient)
        self.value = torch.where(self.halved, self.best_value, self.value)
        self.best_at_checkpoint, self.increases = self.best_value, torch.zeros_like(self.increases)

    def move(self, threat: Threat, momentum: float) -> None:
        """``x_{k+1} = P(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1}))`` with ``z = P(x_k + step ascent(gradient))``."""
        size = self.step_size.view(-1, 1, 1, 1)
        z = threat.project_(torch.addcmul(self.iterate, size, threat.ascent(self.gradient)), self.clean)
        if momentum < 1:
            z = torch.lerp(self.iterate, z, momentum).add_(self.iterate - self.previous, alpha=1 - momentum)
            z = threat.project_(z, self.clean)
        self.previous, self.iterate = self.iterate, z


def _climb(
    oracle: Oracle, threat: Threat, walks: _Walks, loss: _Loss, steps: int, adversarial: Tensor | None
) -> None:
    """Does all steps of ``walks``, in place.

    Args:
        adversarial: ``[n, C, H, W]``; if given, the first misclassified iterate of an image is written to it, and all
            walks of that image are dropped.
    """
    checkpoint_steps = checkpoints(steps)
    for step in range(steps + 1):

        def values_of(logits: Tensor) -> Tensor:
            return loss(logits, walks.label, walks.target)

        if step < steps:
            value, logits, gradient = oracle.gradient(walks.iterate, values_of)
        # The last iterate needs no gradient.
        else:
            value, logits = oracle.values_and_logits(walks.iterate, values_of)
            gradient = walks.gradient
        if adversarial is not None and bool((wrong := margins.is_wrong(logits, walks.label)).any()):
            broken = walks.index[wrong]
            first = torch.cat([broken.new_ones(1).bool(), broken[1:] != broken[:-1]])
            adversarial[broken[first]] = walks.iterate[wrong][first]
            subset = (~torch.isin(walks.index, broken)).nonzero().squeeze(1)
            value, gradient = value[subset], gradient[subset]
            walks.select(subset)
            if len(subset) == 0:
                return
        walks.update(value, gradient)
        if step < steps:
            if step in checkpoint_steps[1:]:
                walks.adapt_step_size(step - checkpoint_steps[checkpoint_steps.index(step) - 1])
            walks.move(threat, 1.0 if step == 0 else MOMENTUM)


def _where(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` for the images where ``mask``, bool ``[n]``, is true, else ``other``; ``[n, C, H, W]``."""
    return torch.where(mask.view(-1, 1, 1, 1), one, other)


def _start(threat: Threat, images: Tensor, seeds: Tensor) -> Tensor:
    """Starts at the distance of the radius from each image, in a random direction, projected to [0, 1]."""
    shape = images.shape[1:]
    if threat.norm == "linf":
        direction = 2 * noise.uniform(seeds, 0, shape) - 1
        length = direction.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    else:
        direction = noise.normal(seeds, 0, shape)
        length = image_norm(direction)
    return threat.project(images + threat.epsilon * (direction / length).to(images), images)
