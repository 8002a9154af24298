"""The divergence monitor: non-finite, exploding or collapsed energies, and saturated samples."""

from __future__ import annotations

import math

from trilemma.monitors.monitor import Alarm, Stateful
from trilemma.monitors.readings import Reading

ENERGIES = ("energy_clean", "energy_adversarial", "energy_generated")


class DivergenceMonitor(Stateful):
    """Alarms if a step's values cannot come from a healthy run.

    - a value is not finite;
    - the absolute value of a mean energy exceeds ``limit`` (healthy logits stay within tens);
    - real and generated mean energies differ by more than ``gap`` for ``patience`` steps, or the contrastive term
      alone exceeds ``gap`` (its real images may not be the classified ones): that term has no lower bound, so a
      widening gap is a collapse that the size of the loss does not show;
    - almost all pixels of the samples are at the bounds of [0, 1] for ``patience`` steps.

    Args:
        limit, gap: logit units.
        saturation: share of pixels, in [0, 1].
        patience: consecutive steps.
    """

    # both count consecutive steps
    STATE = ("apart", "saturated")

    def __init__(
        self, limit: float = 1e4, gap: float = 200.0, saturation: float = 0.98, patience: int = 20
    ) -> None:
        self.limit = limit
        self.gap = gap
        self.saturation = saturation
        self.patience = patience
        self.apart = 0
        self.saturated = 0

    def read(self, reading: Reading, step: int) -> Alarm | None:
        """Returns the alarm of one step, or ``None``."""
        return (
            self._extreme_value(reading, step)
            or self._energy_gap(reading, step)
            or self._saturation(reading, step)
        )

    def _extreme_value(self, reading: Reading, step: int) -> Alarm | None:
        for name, value in reading.items():
            if value is not None and not math.isfinite(value):
                return Alarm("divergence", f"{name} is {value}", step)
        for name in ENERGIES:
            value = reading.get(name)
            if value is not None and abs(value) > self.limit:
                return Alarm("divergence", f"{name} is {value:.3g}, beyond {self.limit:g}", step)
        return None

    def _energy_gap(self, reading: Reading, step: int) -> Alarm | None:
        real, generated = reading.get("energy_clean"), reading.get("energy_generated")
        if real is None:
            real = reading.get("energy_adversarial")
        wide = real is not None and generated is not None and abs(real - generated) > self.gap
        contrastive = reading.get("terms/contrastive")
        large_term = contrastive is not None and abs(contrastive) > self.gap
        self.apart = self.apart + 1 if wide or large_term else 0
        if self.apart < self.patience:
            return None
        self.apart = 0
        message = (
            f"real {real:.3g} and generated {generated:.3g} energies have come apart"
            if wide
            else f"real and generated energies have come apart: the contrastive term is {contrastive:.3g}"
        )
        return Alarm("divergence", message, step)

    def _saturation(self, reading: Reading, step: int) -> Alarm | None:
        share = reading.get("saturated")
        self.saturated = self.saturated + 1 if share is not None and share > self.saturation else 0
        if self.saturated < self.patience:
            return None
        self.saturated = 0
        return Alarm("divergence", f"{share:.0%} of the samples' pixels are at the edge of the box", step)
