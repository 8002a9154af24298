"""The overfitting monitor: catastrophic and robust overfitting, from the step's own delta energies.

The signals are those of training itself (the step's perturbation, the mode it ran in); the same
quantities under a strong attack on held-out images are known not to separate the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trilemma.monitors.monitor import Alarm, Once
from trilemma.monitors.readings import Reading

SIGNALS = ("shift", "shift_p95", "abnormal", "delta_marginal")


class OverfittingMonitor:
    """Alarms by slow and fast running means of the delta energies.

    Catastrophic overfitting: within about an epoch the mean and the 95th percentile of the shift length
    jump, and the share of abnormal adversarial examples jumps with them. A small network may go the same
    way over many epochs: then the abnormal share has left its lowest level while the input gradients of attack
    and training have parted (:mod:`trilemma.monitors.gradient_cosine`). Robust overfitting: late in
    training the mean dE(x) has slid far below the level it had settled at; while a network learns, dE(x)
    grows from 0 to that level, which is no overfitting. The sign of dE(x) alone says nothing.

    Args:
        window: steps of the fast mean, about an epoch at most; the slow mean runs over ten windows.
        jump: factor of the shift length that counts as a jump.
        abnormal_jump: rise of the abnormal share that counts as a jump.
        abnormal_rise: rise above its lowest settled level that counts once the gradients have parted.
        slide: fall of dE(x) below twice its settled level, logit units, that counts as robust overfitting.
        settled_at: step from which dE(x) counts as settled; half of a run.
    """

    def __init__(
        self,
        window: int,
        jump: float = 2.0,
        abnormal_jump: float = 0.1,
        abnormal_rise: float = 0.05,
        slide: float = 0.2,
        settled_at: int = 0,
    ) -> None:
        self.window = max(2, window)
        self.jump = jump
        self.abnormal_jump = abnormal_jump
        self.abnormal_rise = abnormal_rise
        self.slide = slide
        self.settled_at = settled_at
        self.fast: dict[str, float] = {}
        self.slow: dict[str, float] = {}
        self.count = 0
        self.last: int | None = None
        self.highest = float("-inf")
        self.jumped = False  # whether the last reading showed a collapse
        self.lowest = 1.0  # level of the abnormal share
        self.rested = 0  # the last step at which dE(x) had no trend
        self.once = Once(10 * self.window)

    def read(self, reading: Reading, step: int, parted: bool = False) -> list[Alarm]:
        """Takes in one step; an alarm is raised again once its cause was away for ten windows.

        Args:
            parted: whether the input gradients of attack and training have lost their former agreement.
        """
        values = {name: value for name in SIGNALS if (value := reading.get(name)) is not None}
        if len(values) < len(SIGNALS):
            return []
        # a reading stands for the steps since the one before: some methods have these values every tenth step
        elapsed = 1 if self.last is None else max(1, step - self.last)
        self.last = step
        self.count += elapsed
        for name, value in values.items():
            for means, length in ((self.fast, self.window), (self.slow, 10 * self.window)):
                if self.jumped and means is self.slow and name != "delta_marginal":
                    continue  # a collapse does not become the level that the next is measured by
                # a plain mean until the window is full, then exponential with the same weight per step
                before = means.get(name, 0.0)
                means[name] = before + (value - before) * min(1.0, elapsed / min(self.count, length))
        if self.count < 3 * self.window:
            return []
        return [*self._catastrophic(step, parted), *self._robust(step)]

    def _catastrophic(self, step: int, parted: bool) -> list[Alarm]:
        fast, slow = self.fast, self.slow
        self.lowest = min(self.lowest, slow["abnormal"])
        self.jumped = (
            fast["shift"] > self.jump * slow["shift"]
            and fast["shift_p95"] > self.jump * slow["shift_p95"]
            and fast["abnormal"] > slow["abnormal"] + self.abnormal_jump
        )
        crept = parted and fast["abnormal"] > self.lowest + self.abnormal_rise
        if not (self.jumped or crept):
            return []
        usual = slow["abnormal"] if self.jumped else self.lowest
        message = (
            f"shift length {slow['shift']:.3g} -> {fast['shift']:.3g}, abnormal {usual:.2f} -> {fast['abnormal']:.2f}, "
            f"mean dE(x) {slow['delta_marginal']:.2g} -> {fast['delta_marginal']:.2g}"
        )
        return self.once(Alarm("catastrophic-overfitting", message, step, lag=3 * self.window))

    def _robust(self, step: int) -> list[Alarm]:
        if step < self.settled_at:
            return []
        level, settled = self.fast["delta_marginal"], self.slow["delta_marginal"]
        if abs(level - settled) < self.slide / 2:  # at rest: the slow mean has no trend to lag behind
            self.highest = max(self.highest, settled)
            self.rested = step
        if level >= 2 * min(self.highest, 0.0) - self.slide:
            return []
        message = f"mean dE(x) slid from {self.highest:.3g} to {level:.3g}"
        return self.once(Alarm("robust-overfitting", message, step, lag=max(1, step - self.rested)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "fast": dict(self.fast),
            "slow": dict(self.slow),
            "count": self.count,
            "last": self.last,
            "highest": self.highest if self.highest > float("-inf") else None,
            "jumped": self.jumped,
            "lowest": self.lowest,
            "rested": self.rested,
            "once": self.once.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.fast, self.slow = dict(state["fast"]), dict(state["slow"])
        self.count, self.last = state["count"], state["last"]
        self.highest = float("-inf") if state["highest"] is None else state["highest"]
        self.jumped, self.lowest, self.rested = state["jumped"], state["lowest"], state["rested"]
        self.once.load_state_dict(state["once"])
