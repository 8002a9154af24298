"""Alarms, the remedies they can ask for, and what all monitors share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alarm:
    """Something a monitor saw.

    Attributes:
        name: one of :data:`trilemma.config.remedies.AlarmName`.
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


class Once:
    """Lets an alarm through, and the same one again only after its cause was away for ``rest`` steps.

    Args:
        rest: steps.
    """

    def __init__(self, rest: int) -> None:
        self.rest = rest
        self.present: dict[str, int] = {}  # the last step at which each alarm's cause was there
        self.quiet_until = 0

    def __call__(self, alarm: Alarm) -> list[Alarm]:
        """Tells of an alarm whose cause is there at its step; a list of it, or an empty one."""
        if alarm.step < self.quiet_until:
            return []
        before = self.present.get(alarm.name)
        self.present[alarm.name] = alarm.step
        return [alarm] if before is None or alarm.step - before > self.rest else []

    def remedied(self, until: int) -> None:
        """A remedy was given in place: silence until it can have worked; a cause still there then sounds anew."""
        self.present.clear()
        self.quiet_until = until

    def state_dict(self) -> dict[str, Any]:
        return {"present": dict(self.present), "quiet_until": self.quiet_until}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.present, self.quiet_until = dict(state["present"]), state["quiet_until"]
