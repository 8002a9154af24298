"""The energy landscape in figures: where each image set lies, and where attacks move each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from trilemma.figures.style import SET_LINES, Theme, legend_above, new_figure
from trilemma.metrics.energy_landscape import SETS, EnergyPoints

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


DELTA_BINS = 41
# Of an attack after more loss of the true class, and of one after another class.
AIMS = {"loss": ("o", "climbs a loss of the true class"), "class": ("D", "wants another class")}
_LABEL_GAP, _LABEL_TOP = 0.062, 0.96  # between neighbouring labels, and below the legend; axes heights


def draw_moves(moves: Mapping[str, Any], theme: Theme) -> Figure:
    """An arrow per attack in the plane of E(x) and E(x, y), from the mean of the clean images to that of the attacked.

    Args:
        moves: the record of :meth:`trilemma.evaluation.diagnose.Landscape.moves`, with at least one attack.
    """
    figure, axes = new_figure(6.0, 4.6)
    start = _means(moves["clean"])
    ends = {name: _means(found) for name, found in moves["attacks"].items()}
    both = np.array([start, *ends.values()])
    low, high = both.min(0), both.max(0)
    room = 0.08 * np.maximum(high - low, 1e-3)
    axes.set_xlim(low[0] - room[0], high[0] + room[0])
    axes.set_ylim(low[1] - room[1], high[1] + room[1])
    _zero_loss(axes, theme)
    colour = theme.sets["adversarial"]
    for name, end in ends.items():
        axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.45, "linewidth": 1.4}
        )
        hollow = moves["attacks"][name]["aim"] == "class"
        axes.plot(
            *end, AIMS[moves["attacks"][name]["aim"]][0], color=colour, markersize=6.5, zorder=3,
            markerfacecolor=theme.background if hollow else colour, markeredgewidth=1.5,
        )  # fmt: skip
    axes.plot(*start, "s", color=theme.sets["clean"], markersize=8, zorder=4)
    _label_column(axes, ends, theme)
    axes.grid(True, axis="both")
    axes.set_xlabel("mean E(x), logits (right: rarer)")
    axes.set_ylabel("mean E(x, y), logits")
    axes.set_title("Where each attack moves the mean energies", pad=24)
    axes.legend(
        handles=_handles(theme, {found["aim"] for found in moves["attacks"].values()}), loc="lower left",
        bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.1, handlelength=1, columnspacing=1.2, borderpad=0,
        handletextpad=0.4,
    )  # fmt: skip
    return figure


def _means(found: Mapping[str, Any]) -> tuple[float, float]:
    return found["marginal"]["mean"], found["joint"]["mean"]


def _zero_loss(axes: Axes, theme: Theme) -> None:
    """The line E(x, y) = E(x), below which no point can lie, as far as it crosses the plot."""
    axes.axline((0, 0), slope=1, color=theme.muted, linewidth=1, zorder=1)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    end = min(right, top)
    if end > max(left, bottom):
        name_zero_loss(axes, end, theme)


def _label_column(axes: Axes, ends: Mapping[str, tuple[float, float]], theme: Theme) -> None:
    """Names in a column beside the plot, in the order of their points' heights, each led to its point."""
    bottom, top = axes.get_ylim()
    names = sorted(ends, key=lambda name: ends[name][1])
    heights = spread_out(
        [(ends[name][1] - bottom) / (top - bottom) for name in names], _LABEL_GAP, _LABEL_TOP
    )
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name, ends[name], (1.03, height), textcoords="axes fraction", va="center", fontsize=9.5, color=theme.text,
            arrowprops={"arrowstyle": "-", "color": theme.muted, "linewidth": 0.6, "alpha": 0.7,
                        "relpos": (0, 0.5), "shrinkB": 5},
        )  # fmt: skip


def spread_out(heights: list[float], gap: float, ceiling: float) -> list[float]:
    """Rising heights in [0, 1], pushed up, and down again below ``ceiling``, until neighbours are ``gap`` apart."""
    gap = min(gap, ceiling / max(len(heights) - 1, 1))
    found = list(heights)
    for place in range(1, len(found)):
        found[place] = max(found[place], found[place - 1] + gap)
    for place in reversed(range(len(found))):
        found[place] = min(found[place], ceiling)
        ceiling = found[place] - gap
    return found


def _handles(theme: Theme, aims: set[str]) -> list[Line2D]:
    colour = theme.sets["adversarial"]
    shown = [(aim, *about) for aim, about in AIMS.items() if aim in aims]
    return [
        Line2D([], [], marker="s", linestyle="", color=theme.sets["clean"], label="clean"),
        *(
            Line2D(
                [], [], marker=marker, linestyle="", color=colour, label=label, markeredgewidth=1.5,
                markerfacecolor=theme.background if aim == "class" else colour,
            )
            for aim, marker, label in shown
        ),
    ]  # fmt: skip


def draw_deltas(clean: EnergyPoints, attacked: Mapping[str, EnergyPoints], theme: Theme) -> Figure:
    """Histograms of dE(x) and dE(x, y), clean minus attacked, one row per attack, on common axes.

    Args:
        clean: of the images as they are.
        attacked: attack name to the same images under it.
    """
    figure, grid = new_figure(
        6.0, 0.9 + 0.72 * len(attacked), len(attacked), 2, sharex="col", sharey="col", squeeze=False
    )
    for column, (energy, title) in enumerate(TITLES.items()):
        before = getattr(clean, energy)
        deltas = {name: before - getattr(points, energy) for name, points in attacked.items()}
        ends = np.array([np.quantile(values.numpy(), [0.005, 0.995]) for values in deltas.values()])
        low, high = min(float(ends.min()), 0.0), max(float(ends.max()), 0.0)
        margin = 0.03 * (high - low) or 1.0
        bins = np.linspace(low - margin, high + margin, DELTA_BINS + 1)
        for row, (name, values) in enumerate(deltas.items()):
            axes = grid[row, column]
            inside = clipped(values, float(bins[0]), float(bins[-1]))
            axes.hist(
                inside, bins=bins, weights=np.full(len(inside), 1 / len(inside)),
                color=theme.sets["adversarial"], alpha=0.75,
            )  # fmt: skip
            axes.axvline(0, color=theme.text, linewidth=1)
            axes.axvline(float(values.mean()), color=theme.muted, linewidth=1.2, linestyle="--")
            axes.set_yticks([])
            axes.set_xlim(bins[0], bins[-1])
            if column == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", color=theme.text)
        grid[0, column].set_title(f"d{title}")
        grid[-1, column].set_xlabel("clean minus attacked, logits")
    return figure
