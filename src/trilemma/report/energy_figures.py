"""The energy landscape in two figures: where each image set lies, and where the attack moves each image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.metrics.energy_landscape import SETS, EnergyPoints
from trilemma.report.style import SET_LINES, Theme, legend_above, new_figure

TITLES = {"marginal": "E(x)", "joint": "E(x, y)"}
BINS = 48
ARROWS = 300


def energy_range(points: Mapping[str, EnergyPoints], energy: str) -> tuple[float, float]:
    """The span of 99.8 % of each set, so that one far outlier does not squeeze the rest; for shared axes."""
    ends = [np.quantile(getattr(found, energy).numpy(), [0.001, 0.999]) for found in points.values()]
    low, high = min(float(e[0]) for e in ends), max(float(e[1]) for e in ends)
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin


def draw_histograms(
    points: Mapping[str, EnergyPoints], theme: Theme, ranges: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Histograms of E(x) and of E(x, y), one outline per image set.

    Args:
        points: some of ``clean``, ``adversarial`` and ``generated``.
        ranges: per energy the axis to use, so that figures of several runs can be compared.
    """
    figure, both = new_figure(5.2, 4.6, 2, 1)
    for axes, (energy, title) in zip(both, TITLES.items(), strict=True):
        low, high = (ranges or {}).get(energy) or energy_range(points, energy)
        for name in (name for name in SETS if name in points):
            values = clipped(getattr(points[name], energy), low, high)
            weights = np.full(len(values), 1 / max(len(values), 1))
            shared = {"bins": np.linspace(low, high, BINS + 1), "weights": weights, "color": theme.sets[name]}
            axes.hist(values, histtype="stepfilled", alpha=0.16, **shared)
            axes.hist(values, histtype="step", linewidth=1.7, linestyle=SET_LINES[name], label=name, **shared)
        axes.set_title(title, pad=22 if energy == "marginal" else 6)
        axes.set_xlim(low, high)
        axes.set_ylabel("share of images")
    both[1].set_xlabel("energy, logits (lower: denser)")
    legend_above(both[0])
    return figure


def clipped(values: Tensor, low: float, high: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Values beyond the axis fall into its last bins instead of vanishing."""
    clipped: np.ndarray[tuple[int], np.dtype[np.float32]] = np.clip(values.numpy(), low, high)
    return clipped


def draw_quiver(
    clean: EnergyPoints, adversarial: EnergyPoints, theme: Theme, attack: str = "adversarial"
) -> Figure:
    """Arrows (E(x), E(x, y)) to (E(x*), E(x*, y)), coloured by their length; at most 300, evenly picked."""
    figure, axes = new_figure(5.2, 4.4)
    places = np.unique(np.linspace(0, len(clean.marginal) - 1, min(ARROWS, len(clean.marginal))).astype(int))
    x, y = clean.marginal.numpy()[places], clean.joint.numpy()[places]
    dx, dy = adversarial.marginal.numpy()[places] - x, adversarial.joint.numpy()[places] - y
    lengths = np.hypot(dx, dy)
    ends = np.concatenate([x, x + dx, y, y + dy])
    low, high = float(ends.min()), float(ends.max())
    # CE = E(x, y) - E(x) >= 0: every point lies on or above this line, and on it the loss is 0.
    axes.plot([low, high], [low, high], color=theme.muted, linewidth=1, zorder=1)
    name_zero_loss(axes, high, theme)
    arrows = axes.quiver(
        x, y, dx, dy, lengths, angles="xy", scale_units="xy", scale=1, width=0.0035, headwidth=4.5,
        cmap=theme.colour_map, alpha=0.85, zorder=2,
    )  # fmt: skip
    axes.margins(0.05)
    axes.set_xlabel("E(x), logits")
    axes.set_ylabel("E(x, y), logits")
    axes.set_title(f"From clean to {attack}")
    bar = figure.colorbar(arrows, ax=axes, shrink=0.85, aspect=28, pad=0.02)
    bar.set_label("length of the shift")
    bar.outline.set_visible(False)
    return figure


def name_zero_loss(axes: Axes, end: float, theme: Theme) -> None:
    """Names the line E(x, y) = E(x) at its point ``end``, from below and along it."""
    axes.text(
        end, end, "loss 0 ", rotation=45, rotation_mode="anchor", transform_rotates_text=True, ha="right", va="top",
        fontsize=8.5, color=theme.muted,
    )  # fmt: skip
