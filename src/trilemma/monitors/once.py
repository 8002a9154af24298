"""An alarm sounds when its cause appears, not at every step while the cause lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trilemma.monitors.alarm import Alarm


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
