"""What a protocol is: a name, a version, and a judge of images. Another setting is another name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import as_float
from trilemma.metrics.accuracy import share
from trilemma.progress import Advance, silent
from trilemma.threat import Threat


@dataclass(frozen=True)
class Quantity:
    """What the value of a row is, and which way is better."""

    name: str
    better: Literal["higher", "lower"]


ACCURACY = Quantity("accuracy", "higher")


@dataclass(frozen=True)
class Measurement:
    """A value that is not a share of right images.

    Attributes:
        value: in the unit of the protocol's quantity.
        count: images that it was measured on.
        interval: its 95 % interval, or ``None`` where no honest one is known.
        also: further figures under the same protocol, shown beside the value.
        facts: further numbers for the row, JSON-like.
        name: what the row is called, where the name asked for does not say all, as a path does not.
    """

    value: float
    count: int
    interval: tuple[float, float] | None = None
    also: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True)
class Verdicts:
    """What a protocol found.

    Attributes:
        right: bool ``[N]`` on the CPU: images that are classified correctly, and stay so under the protocol's attack.
        facts: further numbers for the row, JSON-like.
    """

    right: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)

    def measured(self) -> Measurement:
        """The share of right images with its Wilson interval."""
        found = share(self.right)
        return Measurement(found.value, found.count, (found.lower, found.upper), facts=self.facts)


@dataclass(frozen=True)
class Saved:
    """Where a protocol keeps what it has found so far.

    Attributes:
        path: a file of its own.
        resume: go on from it where there is one; else it is written anew.
    """

    path: Path
    resume: bool


@dataclass(frozen=True)
class Request:
    """What a judge is asked.

    Attributes:
        clf: the classifier; to be left exactly as it was. It works on its own device.
        images: ``[N, C, H, W]`` as the data set holds them, uint8 or float32 on the CPU
            (:func:`trilemma.data.image_set.as_float` reads both).
        labels: int64 ``[N]``.
        threat: what attacks may do; ``None`` only for protocols that need none.
        seed: of every random number.
        batch_size: images at a time; must not change the result beyond rounding.
        advance: called with the number of further images that are done.
        progress: for a ``long`` protocol, whether to show progress on standard error.
        saved: for a ``long`` protocol, where to keep unfinished work; ``None`` for nowhere.
    """

    clf: Classifier
    images: Tensor
    labels: Tensor
    threat: Threat | None
    seed: int
    batch_size: int
    advance: Advance = silent
    progress: bool = False
    saved: Saved | None = None

    @property
    def ball(self) -> Threat:
        """The threat, for protocols that need one: ``evaluate`` has checked that it is there."""
        assert self.threat is not None
        return self.threat

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels on the classifier's device, ``batch_size`` at a time."""
        for places in torch.arange(len(self.labels)).split(self.batch_size):
            yield as_float(self.images[places].to(self.clf.device)), self.labels[places].to(self.clf.device)


Judge = Callable[[Request], Verdicts | Measurement]


@dataclass(frozen=True)
class Protocol:
    """A way to measure that can be repeated.

    Attributes:
        version: raised by every change that can change a result.
        needs_threat: whether it attacks.
        judge: does the work.
        quantity: what its value is.
        suits: raises a :class:`trilemma.errors.ConfigError` for a classifier that it is not defined for.
        long: its judge shows its own progress, and resumes from ``request.saved``.
    """

    version: int
    needs_threat: bool
    judge: Judge
    quantity: Quantity = ACCURACY
    suits: Callable[[Classifier], None] = lambda clf: None
    long: bool = False


def protocol(
    version: int, *, needs_threat: bool, quantity: Quantity = ACCURACY
) -> Callable[[Judge], Protocol]:
    """Makes a function a :class:`Protocol`; its registry row names it."""
    return lambda judge: Protocol(version, needs_threat, judge, quantity)
