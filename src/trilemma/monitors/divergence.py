"""The divergence monitor: non-finite, exploding or collapsed energies, and saturated samples."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trilemma.monitors.monitor import Alarm
from trilemma.monitors.readings import Reading

ENERGIES = ("energy_clean", "energy_adversarial", "energy_generated")


class DivergenceMonitor:
    """Alarms when a step's values cannot come from a healthy run.

    - a value that is not finite;
    - a mean energy beyond ``limit`` (healthy logits stay within tens);
    - real and generated energies more than ``gap`` apart for ``patience`` steps, or the contrastive term itself
      beyond it (its real images may be others than the classified ones): the term has no floor, so a widening
      gap is the silent collapse that the loss's size hides;
    - almost all pixels of the samples at the edge of the box for ``patience`` steps.

    Args:
        limit, gap: logit units.
        saturation: share of pixels.
        patience: consecutive steps.
    """

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
        """Takes in one step; an alarm or ``None``."""
        for name, value in reading.items():
            if value is not None and not math.isfinite(value):
                return Alarm("divergence", f"{name} is {value}", step)
        for name in ENERGIES:
            value = reading.get(name)
            if value is not None and abs(value) > self.limit:
                return Alarm("divergence", f"{name} is {value:.3g}, beyond {self.limit:g}", step)
        real, generated = reading.get("energy_clean"), reading.get("energy_generated")
        if real is None:
            real = reading.get("energy_adversarial")
        wide = real is not None and generated is not None and abs(real - generated) > self.gap
        contrast = reading.get("terms/contrastive")
        deep = contrast is not None and abs(contrast) > self.gap
        self.apart = self.apart + 1 if wide or deep else 0
        if self.apart >= self.patience:
            self.apart = 0
            seen = (
                f"real {real:.3g} and generated {generated:.3g} energies have come apart"
                if wide
                else f"real and generated energies have come apart: the contrastive term is {contrast:.3g}"
            )
            return Alarm("divergence", seen, step)
        share = reading.get("saturated")
        self.saturated = self.saturated + 1 if share is not None and share > self.saturation else 0
        if self.saturated >= self.patience:
            self.saturated = 0
            return Alarm("divergence", f"{share:.0%} of the samples' pixels are at the edge of the box", step)
        return None

    def state_dict(self) -> dict[str, int]:
        return {"apart": self.apart, "saturated": self.saturated}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.apart, self.saturated = state["apart"], state["saturated"]
