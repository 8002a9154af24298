"""An alarm, and the remedies it can ask for: data, carried out by the loop alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alarm:
    """Something a monitor saw.

    Attributes:
        name: one of :data:`trilemma.ladders.AlarmName`.
        message: what was seen, with figures.
        step: at which step, counted from 1.
        lag: steps before it at which its cause may have begun; a checkpoint from before that is healthy.
    """

    name: str
    message: str
    step: int
    lag: int = 1

    @property
    def onset(self) -> int:
        """The last step whose weights count as healthy."""
        return max(0, self.step - self.lag)


@dataclass(frozen=True)
class Rollback:
    """Back to the newest checkpoint from before the alarm's onset."""


@dataclass(frozen=True)
class ScaleRate:
    """The learning rate times ``factor`` from now on."""

    factor: float


@dataclass(frozen=True)
class SetOption:
    """One option of method, regulariser, attack or sampler has another value from now on.

    Attributes:
        name: which action asked for it.
        key: dotted, as on the command line.
    """

    name: str
    key: str
    value: Any


@dataclass(frozen=True)
class Stop:
    """Training ends; the best checkpoint stays. ``failed``: nothing else is left to do."""

    failed: bool


Remedy = Rollback | ScaleRate | SetOption | Stop
