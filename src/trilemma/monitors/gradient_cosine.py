"""Early alarm of catastrophic overfitting: the input gradients at the start and at the end of the attack disagree.

The attack follows the gradient at its start; the training backward pass leaves the gradient at x*. As long as
the loss is nearly linear within the ball, the two agree. A network that learns a loss surface on which a single
step misses lowers their cosine first (cf. GradAlign, Andriushchenko and Flammarion 2020).
"""

from __future__ import annotations

from trilemma.monitors.monitor import Alarm, Debounce, Stateful
from trilemma.monitors.readings import Reading

# Steps of the running mean: with fewer the mean is mostly noise, with more it reacts late.
STEPS = 10


class GradientCosineMonitor(Stateful):
    """Alarms if the running mean of ``gradient_cosine`` falls below a share of its earlier height.

    The height is the largest mean so far, decayed slowly: in a long healthy run the cosine sinks too.

    Args:
        window: steps of the other monitors' fast mean; this monitor's own mean covers at most ten steps.
        share: of the height, below which the mean counts as fallen.
        least: height from which a fall counts; an untrained network's gradients are noise.
        memory: half-life of the height, in windows.
    """

    STATE = ("count", "mean", "height", "once")

    def __init__(self, window: int, share: float = 0.6, least: float = 0.1, memory: int = 50) -> None:
        self.window, self.steps = window, min(STEPS, window)
        self.share = share
        self.least = least
        self.decay = 0.5 ** (1 / (memory * window))
        self.once = Debounce(10 * window)
        self.count = 0
        self.mean = self.height = 0.0

    @property
    def fallen(self) -> bool:
        """Whether the condition holds at the current step."""
        return self.height >= self.least and self.mean < self.share * self.height

    def read(self, reading: Reading, step: int) -> list[Alarm]:
        """Returns the alarm of one step, as a list of none or one; steps without the value are skipped."""
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
