"""Alarms, the remedies that answer them, and the state and repetition rules that all monitors share."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Alarm:
    """A monitor's report that its condition holds.

    Attributes:
        name: one of :data:`trilemma.config.remedies.AlarmName`.
        message: the condition with its values.
        step: training step, counted from 1.
        lag: number of steps before ``step`` at which the cause may have begun; earlier checkpoints are healthy.
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
    """Return to the newest checkpoint from before the alarm's onset."""


@dataclass(frozen=True)
class ScaleRate:
    """Multiply the learning rate by ``factor`` for the rest of the run."""

    factor: float


@dataclass(frozen=True)
class SetOption:
    """Set one option of the method, regulariser, attack or sampler for the rest of the run.

    Attributes:
        name: the configured action that sets it.
        key: dotted config key, as on the command line.
    """

    name: str
    key: str
    value: Any


@dataclass(frozen=True)
class Stop:
    """End training and keep the best checkpoint. ``failed``: no other remedy is left."""

    failed: bool


Remedy = Rollback | ScaleRate | SetOption | Stop


class Stateful:
    """Saves and restores the attributes named in ``STATE``; their names are the keys in a checkpoint.

    Values are copied both ways; an attribute that is itself :class:`Stateful` is saved as its own dictionary.
    """

    STATE: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.STATE}
        return {
            name: value.state_dict() if isinstance(value, Stateful) else copy.copy(value)
            for name, value in values.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Checkpoints of earlier versions lack the names added since, which keep their initial values.
        for name in self.STATE:
            if name not in state:
                continue
            value = getattr(self, name)
            if isinstance(value, Stateful):
                value.load_state_dict(state[name])
            else:
                setattr(self, name, copy.copy(state[name]))


class Debounce(Stateful):
    """Debounces alarms: fires again only after the condition was clear for ``rest`` steps."""

    STATE = ("present", "quiet_until")

    def __init__(self, rest: int) -> None:
        self.rest = rest
        # alarm name -> the last step at which its condition held
        self.present: dict[str, int] = {}
        self.quiet_until = 0

    def __call__(self, alarm: Alarm) -> list[Alarm]:
        """Returns ``[alarm]``, or ``[]`` if it repeats an earlier one; to be called whenever the condition holds."""
        if alarm.step < self.quiet_until:
            return []
        before = self.present.get(alarm.name)
        self.present[alarm.name] = alarm.step
        return [alarm] if before is None or alarm.step - before > self.rest else []

    def silence(self, until: int) -> None:
        """Suppresses alarms before step ``until``, after a remedy; a condition that still holds then fires again."""
        self.present.clear()
        self.quiet_until = until


# Accuracy of a constant answer where the number of classes is not known: one of ten.
CHANCE = 0.1


def standard_error(accuracy: float, images: int | None, other: float = 0.0) -> float:
    """Returns the binomial standard error of an accuracy, or of the difference of two independent ones.

    Args:
        accuracy, other: in [0, 1].
        images: number of images; the result is 0 for ``None``, which stands for very many.
    """
    return math.sqrt((accuracy * (1 - accuracy) + other * (1 - other)) / images) if images else 0.0


def above_chance(chance: float, images: int | None) -> float:
    """Returns the accuracy from which on a network has learned more than a constant answer.

    Three standard errors above chance and at least 0.05 (half of the way to 1, if that is less); never below 0.08, as
    weight averages reach that before they have learned anything.

    Args:
        chance: accuracy of answering the largest class for every image.
        images: number of images; ``None`` stands for very many.
    """
    margin = max(min(0.05, (1 - chance) / 2), 3 * standard_error(chance, images))
    return max(0.08, chance + margin)


def at_chance(accuracy: float, chance: float, images: int | None) -> bool:
    """Returns whether an accuracy is that of a constant answer: at most 0.02 or three standard errors above chance."""
    return accuracy <= chance + max(0.02, 3 * standard_error(chance, images))


class EvaluationMonitor(Stateful):
    """Base of monitors that read held-out accuracies: an alarm fires again only after its condition was over."""

    def __init__(self) -> None:
        self.present = False
        self.quiet_until = 0

    def _fire(self, alarm: Alarm, holds: bool, persists: bool) -> list[Alarm]:
        """Returns ``[alarm]`` if its condition is new, else ``[]``.

        Args:
            holds: whether the condition is met at this evaluation.
            persists: whether a condition met earlier is not over yet, by a looser limit.
        """
        if holds and alarm.step < self.quiet_until:
            return []
        fires = holds and not self.present
        self.present = holds or (self.present and persists)
        return [alarm] if fires else []

    def silence(self, until: int) -> None:
        """Suppresses alarms before step ``until``, after a remedy; a condition that still holds then fires again."""
        self.present = False
        self.quiet_until = until
        self.interrupt()

    def interrupt(self) -> None:
        """Forgets the evaluations that are counted towards an alarm, but not the best ones."""
        raise NotImplementedError
