"""``trilemma.counterfactual``: images moved to a class, inside a budget or by the least distance that suffices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma import energies
from trilemma.attacks.arguments import AnyThreat, Length
from trilemma.attacks.counterfactual import ENERGIES, distances, least_budget, within_budget
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.output import check_finite
from trilemma.classifier.wrap import as_labels
from trilemma.errors import ConfigError, UnknownNameError, nearest
from trilemma.evaluation.counterfactual_result import Counterfactuals, Trajectory
from trilemma.evaluation.evaluate import environment
from trilemma.evaluation.predict import Images, open_items
from trilemma.evaluation.source import Source, open_source
from trilemma.printing import quoted
from trilemma.progress import bar
from trilemma.threat import Threat
from trilemma.units import check_radius, choice, count, length, parse_norm

BATCH_SIZE = 64
# Default steps with a budget, and per radius of the search for the least distance.
STEPS, STEPS_PER_RADIUS = 100, 50
# Default tolerance of the least distance, pixel units.
TOLERANCES = {"l2": 0.01, "linf": 0.001}
# Steps of equal length on the straight way to an image at the least distance.
WAY = 20
# Images of the way that are kept for an animation.
FRAMES = 24
# Class names of an error message.
# Images of one way that are kept for an animation.
MOST_FRAMES = 10_000
LISTED = 20
KEYS = (
    "distance", "marginal energy", "target energy", "original energy", "target confidence", "original confidence",
)  # fmt: skip


@torch.inference_mode(False)
def counterfactual(
    source: Source,
    images: Images,
    target: int | str | Sequence[int] | Tensor,
    budget: AnyThreat = None,
    *,
    norm: Any = None,
    energy: str = "ce",
    steps: int | None = None,
    tolerance: Length = None,
    frames: int = 0,
    resize: bool = False,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> Counterfactuals:
    """Moves images to a class, inside a budget or by the least distance that reaches it.

    The steps are those of PGD, in eval mode, from the image itself: of unit length in the norm along the gradient of an
    energy of the target class, projected onto the ball and [0, 1]. With a budget, the result is the image of the target
    class with the lowest energy among all steps, or the one of lowest energy if none is of that class; where none is, a
    second walk begins at the first success in growing balls inside the budget, if there is any. Without, the radius is
    doubled until a walk succeeds and then bisected, each walk beginning at the nearest success so far; the
    result is at most ``tolerance`` farther than a radius at which the search failed. For a network that is not linear,
    a nearer image may exist that neither walk finds. An image that is of the target class stays as it is.

    Args:
        source: a run folder, a classifier file, a :class:`Run` or a :class:`Classifier`; its state is restored.
        images: files, folders, archives, a tensor or an image set, as for :func:`trilemma.predict`.
        target: name or number of the class; a text is first looked for among the names. Or one number per image.
        budget: a :class:`Threat`, or a radius such as 1.5 or ``"8/255"``; ``None`` for the least distance.
        norm: ``"l2"`` (the default) or ``"linf"``, of a radius and of the least distance.
        energy: ``"ce"``, the cross-entropy ``E(x, target) - E(x)``, or ``"joint"``, ``E(x, target)``, which is lowered
            also where the class is certain.
        steps: gradient steps, by default 100; without a budget, the largest number per radius, by default 50.
        tolerance: of the least distance, pixel units; by default 0.01 (L2) and 0.001 (L-inf).
        frames: images of each way to keep for :meth:`Counterfactuals.animation`, at least 2; 0 for none.
        resize: crop and resize files of another size, as :func:`trilemma.predict` does; otherwise they are an error.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        batch_size: images per batch; changes the result by rounding only.
        skip_unreadable: print a line about each file that cannot be read, and leave it out; otherwise it is an error.
        progress: show a progress bar on standard error.

    Returns:
        Originals, results, distances, success and trajectories, in the order of the images. With a budget, the points
        of a trajectory are the steps up to the result (of a second walk, after the original); without, 21 points of the
        straight line to it.

    Raises:
        UnknownNameError: no class ``target``.
        ConfigError: an invalid budget, norm, energy or number; a tolerance with a budget.
        ImageError: images of a shape or type that the classifier does not take.
        DataError: a file that is missing, cannot be decoded or has another size; with ``skip_unreadable``, if no file
            can be read.
    """
    settings = _settings(budget, norm, energy, steps, tolerance)
    frames = count("counterfactual", "frames", frames, 0, MOST_FRAMES)
    batch_size = count("counterfactual", "batch_size", batch_size)
    items = open_items(images, skip_unreadable)
    clf = open_source(source, items.tensor, device)
    targets = find_target(clf, target, len(items.names))
    found = []
    with bar("counterfactual", len(items.names), progress) as advance:
        for number, part in enumerate(items.split(batch_size)):
            names, pixels = part.read(clf, skip_unreadable, resize)
            if names:
                wanted = dict(zip(part.names, targets[number * batch_size :].tolist(), strict=False))
                labels = torch.tensor([wanted[name] for name in names])
                found.append(_batch(clf, names, pixels.float(), labels, settings, frames))
            advance(len(part.names))
    items.report_skipped(sum(len(batch.names) for batch in found))
    record = {
        **settings.record(),
        "class_names": list(clf.class_names),
        "checkpoint": clf.provenance(),
        **environment(clf.device),
    }
    return _joined(found, clf.class_names, record)


def find_target(clf: Classifier, target: int | str | Sequence[int] | Tensor, images: int) -> Tensor:
    """The target class of each of ``images`` images, int64 ``[N]``; errors as of :func:`counterfactual`."""
    if isinstance(target, str):
        if target in clf.class_names:
            return torch.full((images,), clf.class_names.index(target))
        if not re.fullmatch("-?[0-9]{1,9}", target.strip()):
            raise UnknownNameError(_no_class(clf, target))
        target = int(target)
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        if not 0 <= target < clf.num_classes:
            raise UnknownNameError(_no_class(clf, quoted(target)))
        return torch.full((images,), int(target))
    return as_labels(target, torch.empty(images), clf.num_classes, "target")


def _no_class(clf: Classifier, target: str) -> str:
    names = clf.class_names
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    # A similar number is no likely meaning of a number.
    similar = "" if target.strip().lstrip("-").isdecimal() else nearest(target, names)
    return (
        f"target {quoted(target)}: no class of this classifier.{similar} Give a number from 0 to "
        f"{len(names) - 1}, or a name: {', '.join(names[:LISTED])}{more}"
    )


@dataclass(frozen=True)
class _Settings:
    """Checked settings of :func:`counterfactual`; ``threat`` is ``None`` for the least distance."""

    norm: str
    threat: Threat | None
    tolerance: float
    energy: str
    steps: int

    def record(self) -> dict[str, Any]:
        limit = {"tolerance": self.tolerance} if self.threat is None else {"budget": str(self.threat.radius)}
        return {"norm": self.norm, **limit, "energy": self.energy, "steps": self.steps}


def _settings(budget: AnyThreat, norm: Any, energy: str, steps: int | None, tolerance: Length) -> _Settings:
    choice("counterfactual", "energy", energy, ENERGIES)
    default_steps = STEPS_PER_RADIUS if budget is None else STEPS
    steps = default_steps if steps is None else count("counterfactual", "steps", steps)
    if budget is not None and tolerance is not None:
        raise ConfigError("counterfactual: tolerance is for the least distance; leave it or the budget out")
    if isinstance(budget, Threat):
        threat: Threat | None = Threat.of(budget, norm)
    else:
        try:
            norm = parse_norm("l2" if norm is None else norm)
        except ValueError as error:
            raise ConfigError(f"norm: {error}") from None
        threat = None if budget is None else _threat(norm, budget)
    chosen = norm if threat is None else threat.norm
    limit = TOLERANCES[chosen] if tolerance is None else length("counterfactual", "tolerance", tolerance)
    return _Settings(chosen, threat, limit, energy, steps)


def _threat(norm: str, budget: Any) -> Threat:
    try:
        check_radius(norm, budget)
    except ValueError as error:
        raise ConfigError(f"budget: {error}") from None
    return Threat(norm, budget)


@dataclass
class _Way:
    """Records the images of a way: numbers of all points, and the images of some."""

    clean: Tensor
    labels: Tensor
    targets: Tensor
    norm: str
    frame_points: set[int]
    columns: dict[str, list[Tensor]] = field(default_factory=lambda: {key: [] for key in KEYS})
    frames: list[Tensor] = field(default_factory=list)
    point: int = 0

    def observe(self, images: Tensor, logits: Tensor) -> None:
        """Records the next point of all images; ``images [N, C, H, W]``, ``logits [N, K]``."""
        confidence = logits.softmax(1)
        point = (
            distances(images, self.clean, self.norm),
            energies.marginal_energy(logits),
            energies.joint_energy(logits, self.targets),
            energies.joint_energy(logits, self.labels),
            confidence.gather(1, self.targets[:, None])[:, 0],
            confidence.gather(1, self.labels[:, None])[:, 0],
        )
        for key, values in zip(KEYS, point, strict=True):
            self.columns[key].append(values.cpu())
        if self.point in self.frame_points:
            self.frames.append(_in_8_bits(images).cpu())
        self.point += 1

    def trajectories(self, last: Sequence[int], images: Tensor) -> list[Trajectory]:
        """The ways of all images, each up to its point of ``last``, where the result ``images`` is."""
        columns = {key: torch.stack(values, 1).tolist() for key, values in self.columns.items()}
        points, results = sorted(self.frame_points), _in_8_bits(images).cpu()
        found = []
        for index, end in enumerate(last):
            kept = [k for k, point in enumerate(points) if point < end] if points else []
            frames = [self.frames[k][index] for k in kept] + ([results[index]] if points else [])
            found.append(
                Trajectory(
                    {key: values[index][: end + 1] for key, values in columns.items()},
                    list(range(end + 1)),
                    torch.stack(frames) if frames else results[:0],
                    [points[k] for k in kept] + ([end] if points else []),
                )
            )
        return found


def _in_8_bits(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _batch(
    clf: Classifier,
    names: list[str] | list[int],
    pixels: Tensor,
    targets: Tensor,
    settings: _Settings,
    frames: int,
) -> Counterfactuals:
    """The counterfactuals of one batch, without the record in ``settings``."""
    clf.check(pixels)
    clean, targets = pixels.to(clf.device), targets.to(clf.device)
    with inner_loop(clf, "eval"):
        with torch.no_grad():
            logits = clf.logits(clean)
            check_finite(logits)
            labels = logits.argmax(1)
        moving = (labels != targets).nonzero().squeeze(1)
        images, ends = clean.clone(), torch.zeros_like(labels)
        points = settings.steps if settings.threat is not None else WAY
        way = _Way(clean, labels, targets, settings.norm, _frame_points(frames, points))
        second: dict[int, Trajectory] = {}
        if settings.threat is not None:
            best = within_budget(
                clf, clean, targets, settings.threat, settings.energy, settings.steps, way.observe
            )
            images[moving], ends[moving] = best.images[moving], best.steps[moving]
            missed = moving[~best.success[moving]]
            second = _second_try(clf, images, missed, way, settings)
        else:
            if len(moving):
                images[moving] = least_budget(
                    clf, clean[moving], targets[moving], settings.norm, settings.tolerance,
                    settings.energy, settings.steps,
                ).images  # fmt: skip
            ends[moving] = WAY
            _follow(clf, clean, images, way)
        with torch.no_grad():
            final = clf.logits(images).argmax(1)
            png_labels = clf.logits(_in_8_bits(images).float() / 255).argmax(1)
    trajectories = way.trajectories(ends.tolist(), images)
    for index, trajectory in second.items():
        trajectories[index] = trajectory
    return Counterfactuals(
        names, pixels.cpu(), images.cpu(), labels.cpu(), targets.cpu(), final.cpu(),
        distances(images, clean, settings.norm).cpu(), (final == targets).cpu(), png_labels.cpu(),
        trajectories, clf.class_names, {},
    )  # fmt: skip


def _second_try(
    clf: Classifier, images: Tensor, missed: Tensor, way: _Way, settings: _Settings
) -> dict[int, Trajectory]:
    """Searches for images within the budget in growing balls, where one walk in the whole ball has failed.

    Args:
        images: ``[N, C, H, W]``; those found are replaced.
        missed: positions of the images to search for.
        way: that of the first walk.

    Returns:
        The ways of the images found, by position: their second point is the first success of the search.
    """
    assert settings.threat is not None
    if not len(missed):
        return {}
    largest, clean, targets = settings.threat.epsilon, way.clean, way.targets
    # The first success will do, so that no bisection follows.
    nearest = least_budget(
        clf, clean[missed], targets[missed], settings.norm, largest, settings.energy, settings.steps, largest
    )
    found = missed[nearest.success]
    if not len(found):
        return {}
    again = _Way(clean[found], way.labels[found], targets[found], settings.norm, way.frame_points)
    with torch.no_grad():
        again.observe(clean[found], clf.logits(clean[found]))
    best = within_budget(
        clf, clean[found], targets[found], settings.threat, settings.energy, settings.steps, again.observe,
        nearest.images[nearest.success],
    )  # fmt: skip
    images[found] = best.images
    return dict(zip(found.tolist(), again.trajectories((best.steps + 1).tolist(), best.images), strict=True))


def _frame_points(frames: int, points: int) -> set[int]:
    """At most ``frames`` numbers from 0 to ``points``, evenly spaced; none for 0 frames."""
    return set(np.linspace(0, points, max(frames, 2)).round().astype(int).tolist()) if frames else set()


@torch.no_grad()
def _follow(clf: Classifier, clean: Tensor, images: Tensor, way: _Way) -> None:
    """Records the points of the straight lines from ``clean`` to ``images``."""
    for point in range(WAY + 1):
        # The result itself at the end: the sum may be rounded to the other side of the decision boundary.
        passed = images if point == WAY else clean + (point / WAY) * (images - clean)
        way.observe(passed, clf.logits(passed))


def _joined(
    parts: list[Counterfactuals], class_names: tuple[str, ...], settings: dict[str, Any]
) -> Counterfactuals:
    """One result of those of all batches."""
    if not parts:
        raise ConfigError("counterfactual: no images given; pass at least one")
    names: list[Any] = [name for part in parts for name in part.names]
    tensors: dict[str, Any] = {
        key: torch.cat([getattr(part, key) for part in parts])
        for key in (
            "originals", "images", "original_labels", "target_labels", "labels", "distances", "success", "png_labels",
        )
    }  # fmt: skip
    trajectories = [trajectory for part in parts for trajectory in part.trajectories]
    return Counterfactuals(
        names=names, trajectories=trajectories, class_names=class_names, settings=settings, **tensors
    )
