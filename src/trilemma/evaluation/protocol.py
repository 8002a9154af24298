"""What a protocol is: a name, a version, and a judge of images. Another setting is another name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from typing import Protocol as CallbackType

from torch import Tensor

from trilemma.classifier import Classifier
from trilemma.evaluation.progress import Advance
from trilemma.metrics.accuracy import share
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


class Judge(CallbackType):
    """The work of a protocol.

    ``images`` are as the data set holds them, uint8 or float32 on the CPU (:func:`trilemma.data.image_set.as_float`
    reads both); ``threat`` is ``None`` only for protocols that need none; ``advance`` is told of finished images.
    """

    def __call__(
        self,
        clf: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat | None,
        seed: int,
        *,
        batch_size: int,
        advance: Advance,
    ) -> Verdicts | Measurement: ...


class LongJudge(CallbackType):
    """The work of a protocol that takes long; the arguments that :class:`Judge` has too are the same.

    ``progress``: show it on standard error. ``saved``: where to keep what is found; ``None`` for nowhere.
    """

    def __call__(
        self,
        clf: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat | None,
        seed: int,
        *,
        batch_size: int,
        progress: bool,
        saved: Saved | None,
    ) -> Verdicts | Measurement: ...


@dataclass(frozen=True)
class Protocol:
    """A way to measure that can be repeated.

    Attributes:
        version: raised by every change that can change a result.
        needs_threat: whether it attacks.
        judge: the work.
        quantity: what its value is.
        suits: raises a :class:`trilemma.errors.ConfigError` for a classifier that it is not defined for.
    """

    version: int
    needs_threat: bool
    judge: Judge
    quantity: Quantity = ACCURACY
    suits: Callable[[Classifier], None] = lambda clf: None


@dataclass(frozen=True)
class LongProtocol:
    """A :class:`Protocol` that takes long: its judge shows its own progress, and goes on where it was interrupted."""

    version: int
    needs_threat: bool
    judge: LongJudge
    quantity: Quantity = ACCURACY
    suits: Callable[[Classifier], None] = lambda clf: None


def protocol(
    version: int, *, needs_threat: bool, quantity: Quantity = ACCURACY
) -> Callable[[Judge], Protocol]:
    """Makes a function a :class:`Protocol`; its name is its registry row's."""
    return lambda judge: Protocol(version, needs_threat, judge, quantity)
