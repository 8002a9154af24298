"""The overfitting monitor: catastrophic and robust overfitting, from the delta energies of training steps.

The signals are those of training itself (the step's perturbation, in the mode it ran in); the same
quantities under a strong attack on held-out images are known not to separate the two.
"""

from __future__ import annotations

from trilemma.monitors.monitor import Alarm, Debounce, Stateful
from trilemma.monitors.readings import Reading

SIGNALS = ("shift", "shift_p95", "abnormal", "delta_marginal")


class OverfittingMonitor(Stateful):
    """Alarms by slow and fast running means of the delta energies.

    Catastrophic overfitting: within about an epoch the mean and the 95th percentile of the shift length
    jump, and the share of abnormal adversarial examples jumps with them. A small network may collapse
    over many epochs instead: then the abnormal share has left its lowest level while the input gradients of attack
    and training disagree (:mod:`trilemma.monitors.gradient_cosine`). Robust overfitting: late in
    training the mean dE(x) has fallen far below its settled level; while a network learns, dE(x)
    drifts from 0 to that level, which is no overfitting. The sign of dE(x) alone carries no information.

    Args:
        window: steps of the fast mean, about an epoch at most; the slow mean covers ten windows.
        jump: factor of the shift length that counts as a jump.
        abnormal_jump: rise of the abnormal share that counts as a jump.
        abnormal_rise: rise above its lowest settled level that counts once the gradients disagree.
        slide: fall of dE(x) below twice its settled level, logit units, that counts as robust overfitting.
        settled_at: step from which dE(x) counts as settled; half of a run.
    """

    STATE = ("fast", "slow", "count", "last", "highest", "jumped", "lowest", "rested", "once")

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
        # running means by signal name
        self.fast: dict[str, float] = {}
        self.slow: dict[str, float] = {}
        self.count = 0
        # the last step that had all signals
        self.last: int | None = None
        # highest settled level of dE(x)
        self.highest: float | None = None
        # whether the last reading showed a collapse
        self.jumped = False
        # lowest slow mean of the abnormal share
        self.lowest = 1.0
        # the last step at which dE(x) had no trend
        self.rested = 0
        self.once = Debounce(10 * self.window)

    def read(self, reading: Reading, step: int, gradients_disagree: bool = False) -> list[Alarm]:
        """Returns the alarms of one step; each fires again only after its condition was clear for ten windows.

        Args:
            gradients_disagree: whether the cosine of the attack's and the training's input gradients has fallen.
        """
        values = {name: value for name in SIGNALS if (value := reading.get(name)) is not None}
        if len(values) < len(SIGNALS):
            return []
        # A reading counts for all steps since the previous one: some methods have these values every tenth step.
        elapsed = 1 if self.last is None else max(1, step - self.last)
        self.last = step
        self.count += elapsed
        for name, value in values.items():
            for means, length in ((self.fast, self.window), (self.slow, 10 * self.window)):
                # A collapse must not become the reference level that the next one is compared with.
                if self.jumped and means is self.slow and name != "delta_marginal":
                    continue
                # A plain mean until the window is full, then an exponential mean with the same weight per step.
                before = means.get(name, 0.0)
                means[name] = before + (value - before) * min(1.0, elapsed / min(self.count, length))
        if self.count < 3 * self.window:
            return []
        return [*self._catastrophic(step, gradients_disagree), *self._robust(step)]

    def _catastrophic(self, step: int, gradients_disagree: bool) -> list[Alarm]:
        fast, slow = self.fast, self.slow
        self.lowest = min(self.lowest, slow["abnormal"])
        self.jumped = (
            fast["shift"] > self.jump * slow["shift"]
            and fast["shift_p95"] > self.jump * slow["shift_p95"]
            and fast["abnormal"] > slow["abnormal"] + self.abnormal_jump
        )
        gradual = gradients_disagree and fast["abnormal"] > self.lowest + self.abnormal_rise
        if not (self.jumped or gradual):
            return []
        before = slow["abnormal"] if self.jumped else self.lowest
        message = (
            f"shift length {slow['shift']:.3g} -> {fast['shift']:.3g}, "
            f"abnormal {before:.2f} -> {fast['abnormal']:.2f}, "
            f"mean dE(x) {slow['delta_marginal']:.2g} -> {fast['delta_marginal']:.2g}"
        )
        return self.once(Alarm("catastrophic-overfitting", message, step, lag=3 * self.window))

    def _robust(self, step: int) -> list[Alarm]:
        if step < self.settled_at:
            return []
        level, settled = self.fast["delta_marginal"], self.slow["delta_marginal"]
        # With no trend, the slow mean does not lag behind the signal.
        if abs(level - settled) < self.slide / 2:
            self.highest = settled if self.highest is None else max(self.highest, settled)
            self.rested = step
        if self.highest is None or level >= 2 * min(self.highest, 0.0) - self.slide:
            return []
        message = f"mean dE(x) slid from {self.highest:.3g} to {level:.3g}"
        return self.once(Alarm("robust-overfitting", message, step, lag=max(1, step - self.rested)))
