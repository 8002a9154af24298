"""What a protocol is: a name, a version, and a judge of every image. Another setting is another name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as CallbackType

from torch import Tensor

from ebat.classifier import Classifier
from ebat.evaluation.progress import Advance
from ebat.threat import Threat


@dataclass(frozen=True)
class Verdicts:
    """What a protocol found.

    Attributes:
        right: bool ``[N]`` on the CPU: images that are classified correctly, and stay so under the protocol's attack.
        facts: further numbers for the row, JSON-like.
    """

    right: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)


class Judge(CallbackType):
    """The work of a protocol.

    ``images`` are as the data set holds them, uint8 or float32 on the CPU (:func:`ebat.data.image_set.as_float`
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
    ) -> Verdicts: ...


@dataclass(frozen=True)
class Protocol:
    """A way to measure accuracy that can be repeated.

    Attributes:
        version: raised by every change that can change a result.
        needs_threat: whether it attacks.
        judge: the work.
    """

    version: int
    needs_threat: bool
    judge: Judge


def protocol(version: int, *, needs_threat: bool) -> Callable[[Judge], Protocol]:
    """Makes a function a :class:`Protocol`; its name is its registry row's."""
    return lambda judge: Protocol(version, needs_threat, judge)
