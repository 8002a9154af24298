"""Types of a protocol: its definition, the request that it gets, and the results that it returns.

A protocol has a registered name and a version and no options: other settings are another protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.config.registry import PROTOCOLS
from trilemma.data.image_set import as_float
from trilemma.defences.purification import Purification
from trilemma.errors import ConfigError
from trilemma.metrics.accuracy import share
from trilemma.progress import Advance, silent
from trilemma.threat import Threat
from trilemma.workers import Workers


@dataclass(frozen=True)
class Quantity:
    """The quantity that a protocol measures, and whether a higher or a lower value is better."""

    name: str
    better: Literal["higher", "lower"]


ACCURACY = Quantity("accuracy", "higher")


@dataclass(frozen=True)
class Measurement:
    """The result of a protocol whose value is not an accuracy.

    Attributes:
        value: in the unit of the protocol's quantity.
        count: number of images that it was measured on.
        interval: 95 % interval (lower, upper), or ``None`` if no valid one is known.
        also: further metrics of the same protocol, displayed beside the value.
        facts: further JSON-like values for the result row.
        name: name of the result row, if it differs from the protocol name, for example where that contains a path.
        chance: the value that the same answer for every image can have; ``None`` if it has no meaning, or for an
            accuracy, whose value by chance is the share of the most frequent class.
    """

    value: float
    count: int
    interval: tuple[float, float] | None = None
    also: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Verdicts:
    """The result of a protocol whose value is an accuracy.

    Attributes:
        correct: bool ``[N]`` on the CPU: images that are classified correctly, also under the protocol's attack.
        facts: further JSON-like values for the result row.
        chance: as in :class:`Measurement`.
        adversarial: float32 ``[N, C, H, W]`` in [0, 1] on the CPU: an adversarial image where the attack found one,
            else any image of the ball that is classified as ``correct`` says. Only if ``request.keep_adversarial``.
    """

    correct: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)
    chance: float | None = None
    adversarial: Tensor | None = None

    def measured(self) -> Measurement:
        """The accuracy with its Wilson interval."""
        accuracy = share(self.correct)
        interval = accuracy.lower, accuracy.upper
        return Measurement(accuracy.value, accuracy.count, interval, facts=self.facts, chance=self.chance)


@dataclass(frozen=True)
class ResumeState:
    """The file in which a long protocol saves unfinished work.

    Attributes:
        path: the protocol's own file.
        resume: resume from the file if it exists; otherwise it is overwritten.
    """

    path: Path
    resume: bool


@dataclass(frozen=True)
class Request:
    """The input of a protocol.

    Attributes:
        clf: the classifier; its state must be restored. Images are moved to its device.
        images: ``[N, C, H, W]`` as stored in the data set, uint8 or float32 on the CPU
            (:func:`trilemma.data.image_set.as_float` reads both).
        labels: int64 ``[N]``.
        threat: norm and radius of attacks; ``None`` only for protocols that do not attack.
        seed: seed of all random numbers.
        batch_size: images per forward pass; may change the result by rounding only.
        advance: progress callback; called with the number of images that were finished since the last call.
        progress: for a ``long`` protocol: show progress on standard error.
        resume_state: for a ``long`` protocol: the file for unfinished work; ``None`` for no file.
        keep_adversarial: return the images of the attack in :class:`Verdicts`, which takes memory for all of them.
        purification: how images are purified before they are classified; only for ``Protocol.purified``.
        workers: processes that share the images, of which a protocol may make use; ``None`` for this process alone.
    """

    clf: Classifier
    images: Tensor
    labels: Tensor
    threat: Threat | None
    seed: int
    batch_size: int
    advance: Advance = silent
    progress: bool = False
    resume_state: ResumeState | None = None
    keep_adversarial: bool = False
    purification: Purification | None = None
    workers: Workers | None = None

    @property
    def required_threat(self) -> Threat:
        """The threat, for protocols that need one; ``evaluate`` has checked that it is not ``None``."""
        assert self.threat is not None
        return self.threat

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of float images and labels on the classifier's device, ``batch_size`` images each."""
        for index in torch.arange(len(self.labels)).split(self.batch_size):
            yield as_float(self.images[index].to(self.clf.device)), self.labels[index].to(self.clf.device)


MeasureFunction = Callable[[Request], Verdicts | Measurement]


@dataclass(frozen=True)
class Protocol:
    """The definition of a protocol.

    Attributes:
        version: incremented by every change that can change a result.
        needs_threat: whether the protocol attacks the classifier.
        measure: function that runs the protocol.
        quantity: the quantity that it measures.
        check_classifier: raises a :class:`trilemma.errors.ConfigError` for classifiers without a defined result.
        long: whether ``measure`` shows its own progress and resumes from ``request.resume_state``.
        purified: function that runs the protocol on purified images, with its attack through the purifier; ``None`` if
            there is none.
    """

    version: int
    needs_threat: bool
    measure: MeasureFunction
    quantity: Quantity = ACCURACY
    check_classifier: Callable[[Classifier], None] = lambda clf: None
    long: bool = False
    purified: MeasureFunction | None = None


def protocol(
    version: int,
    *,
    needs_threat: bool,
    quantity: Quantity = ACCURACY,
    purified: MeasureFunction | None = None,
) -> Callable[[MeasureFunction], Protocol]:
    """Decorator that turns a function into a :class:`Protocol`; the registry gives it its name."""
    return lambda measure: Protocol(version, needs_threat, measure, quantity, purified=purified)


def find_protocol(name: str) -> Protocol:
    """The protocol of a registry name.

    Raises:
        UnknownNameError: no such name.
        ConfigError: the registry row names something else, such as a function without ``@protocol``.
    """
    definition = PROTOCOLS.get(name)
    if isinstance(definition, Protocol):
        return definition
    raise ConfigError(
        f"protocol {name!r}: its registry row names a {type(definition).__name__}; name a Protocol, which "
        "@protocol(version=1, needs_threat=...) makes of a function"
    )
