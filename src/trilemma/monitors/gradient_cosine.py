"""The early alarm of catastrophic overfitting: input gradients at the start and the end of the attack part ways.

The attack follows the gradient at its start; the training backward pass leaves the one at x*. As long as
the loss is nearly linear across the ball they agree. A network that learns to bend the loss there, so that a
single step misses, shows it in their cosine first (cf. GradAlign, Andriushchenko and Flammarion 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trilemma.monitors.monitor import Alarm, Once
from trilemma.monitors.readings import Reading

# A reading of fewer steps is mostly noise, and of more comes late.
STEPS = 10


class GradientCosineMonitor:
    """Alarms when the running mean of ``gradient_cosine`` falls below a share of its former height.

    The height is the largest mean so far, forgotten slowly: over a long healthy run the cosine sinks too.

    Args:
        window: steps of the other monitors' fast mean; this one's runs over at most ten.
        share: of the height, below which it counts as fallen.
        least: height from which a fall counts; an untrained network's gradients are noise.
        memory: windows in which the height is halved.
    """

    def __init__(self, window: int, share: float = 0.6, least: float = 0.1, memory: int = 50) -> None:
        self.window, self.steps = window, min(STEPS, window)
        self.share = share
        self.least = least
        self.decay = 0.5 ** (1 / (memory * window))
        self.once = Once(10 * window)
        self.count = 0
        self.mean = self.height = 0.0

    @property
    def fallen(self) -> bool:
        """Whether the cause is there now."""
        return self.height >= self.least and self.mean < self.share * self.height

    def read(self, reading: Reading, step: int) -> list[Alarm]:
        """Takes in one step; steps without the value are passed over."""
        cosine = reading.get("gradient_cosine")
        if cosine is None:
            return []
        self.count += 1
        self.mean += (cosine - self.mean) / min(self.count, self.steps)
        if self.count >= self.steps:
            self.height = max(self.mean, self.height * self.decay)
        if not self.fallen:
            return []
        message = f"attack and training input gradients: mean cosine {self.height:.2g} -> {self.mean:.2g}"
        return self.once(Alarm("gradient-cosine", message, step, lag=3 * self.window))

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count, "mean": self.mean, "height": self.height, "once": self.once.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.mean, self.height = state["count"], state["mean"], state["height"]
        self.once.load_state_dict(state["once"])
