"""An alarm, and the remedies it can ask for: data, carried out by the loop alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """Something a monitor saw.

    Attributes:
        name: ``divergence``, ``catastrophic-overfitting`` or ``robust-overfitting``.
        message: what was seen, with figures.
        step: at which step.
    """

    name: str
    message: str
    step: int


@dataclass(frozen=True)
class Rollback:
    """Back to the last healthy checkpoint."""


@dataclass(frozen=True)
class ScaleRate:
    """The learning rate times ``factor`` from now on."""

    factor: float


@dataclass(frozen=True)
class Stop:
    """Training ends as failed; the best checkpoint stays."""


Remedy = Rollback | ScaleRate | Stop


def remedies(alarm: Alarm, rollbacks: int, max_rollbacks: int, rate_factor: float) -> list[Remedy]:
    """What to do about an alarm: a divergence goes back and slows down until the limit is reached.

    Overfitting alarms are recorded and drawn; they ask for nothing by themselves.
    """
    if alarm.name != "divergence":
        return []
    if rollbacks >= max_rollbacks:
        return [Stop()]
    return [Rollback(), ScaleRate(rate_factor)]
