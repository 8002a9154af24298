"""Figures of the energy landscape: the energies of each image set, and how attacks change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from trilemma.figures.style import LIGHT, SET_LINES, Theme, drawn_labels, in_theme, legend_above, new_figure
from trilemma.metrics.energy_landscape import SETS, EnergyPoints

TITLES = {"marginal": "E(x)", "joint": "E(x, y)"}
BINS = 48
ARROWS = 300


def energy_range(points: Mapping[str, EnergyPoints], energy: str) -> tuple[float, float]:
    """Returns axis limits that contain 99.8 % of each set, so that outliers do not compress the plot.

    Args:
        points: image set to its energies.
        energy: ``marginal`` or ``joint``.
    """
    quantiles = [
        np.quantile(getattr(energies, energy).numpy(), [0.001, 0.999]) for energies in points.values()
    ]
    low, high = min(float(q[0]) for q in quantiles), max(float(q[1]) for q in quantiles)
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin


@in_theme
def draw_histograms(
    points: Mapping[str, EnergyPoints],
    theme: Theme = LIGHT,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Draws histograms of E(x) and of E(x, y), one outline per image set.

    Args:
        points: energies of some of the sets ``clean``, ``adversarial`` and ``generated``.
        ranges: axis limits per energy, so that figures of several runs can be compared.
    """
    figure, panels = new_figure(5.2, 4.6, 2, 1)
    for axes, (energy, title) in zip(panels, TITLES.items(), strict=True):
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
    panels[1].set_xlabel("energy, logits (lower: denser)")
    legend_above(panels[0])
    return figure


def clipped(values: Tensor, low: float, high: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Returns the values clipped to the axis limits, so that a histogram counts outliers in its outer bins."""
    clipped: np.ndarray[tuple[int], np.dtype[np.float32]] = np.clip(values.numpy(), low, high)
    return clipped


@in_theme
def draw_quiver(
    clean: EnergyPoints, adversarial: EnergyPoints, theme: Theme = LIGHT, attack: str = "adversarial"
) -> Figure:
    """Draws arrows from (E(x), E(x, y)) to (E(x*), E(x*, y)), coloured by length, for at most 300 images."""
    (label,) = drawn_labels([attack], longest=36)
    figure, axes = new_figure(5.2, 4.4)
    index = np.unique(np.linspace(0, len(clean.marginal) - 1, min(ARROWS, len(clean.marginal))).astype(int))
    x, y = clean.marginal.numpy()[index], clean.joint.numpy()[index]
    dx, dy = adversarial.marginal.numpy()[index] - x, adversarial.joint.numpy()[index] - y
    lengths = np.hypot(dx, dy)
    ends = np.concatenate([x, x + dx, y, y + dy])
    low, high = float(ends.min()), float(ends.max())
    # The cross-entropy E(x, y) - E(x) is not negative: no point lies below this line, and on it the loss is 0.
    axes.plot([low, high], [low, high], color=theme.muted, linewidth=1, zorder=1)
    label_zero_loss(axes, high, theme)
    arrows = axes.quiver(
        x, y, dx, dy, lengths, angles="xy", scale_units="xy", scale=1, width=0.0035, headwidth=4.5,
        cmap=theme.colour_map, alpha=0.85, zorder=2,
    )  # fmt: skip
    axes.margins(0.05)
    axes.set_xlabel("E(x), logits")
    axes.set_ylabel("E(x, y), logits")
    axes.set_title(f"From clean to {label}")
    bar = figure.colorbar(arrows, ax=axes, shrink=0.85, aspect=28, pad=0.02)
    bar.set_label("length of the shift")
    bar.outline.set_visible(False)
    return figure


def label_zero_loss(axes: Axes, end: float, theme: Theme) -> None:
    """Labels the line E(x, y) = E(x), below and along it; the label ends at the point (``end``, ``end``)."""
    axes.text(
        end, end, "loss 0 ", rotation=45, rotation_mode="anchor", transform_rotates_text=True, ha="right", va="top",
        fontsize=8.5, color=theme.muted,
    )  # fmt: skip


# Markers of the sets of images, and of single images among them, in the plane of E(x) and E(x, y).
PLANE_MARKERS = {"clean": "o", "adversarial": "^", "generated": "s"}
MARK_MARKERS = ("*", "X", "D")


@in_theme
def draw_plane(
    points: Mapping[str, EnergyPoints],
    marks: Mapping[str, EnergyPoints] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draws sets of images as clouds in the plane of E(x) and E(x, y), and single images as large markers.

    Args:
        points: energies of some of the sets ``clean``, ``adversarial`` and ``generated``.
        marks: name to the energies of one image, at most 3.
    """
    marks = dict(marks or {})
    names = dict(zip(marks, drawn_labels(list(marks)), strict=True)) if marks else {}
    figure, axes = new_figure(5.2, 4.6)
    for name in (name for name in SETS if name in points):
        axes.plot(
            points[name].marginal, points[name].joint, PLANE_MARKERS[name], color=theme.sets[name], markersize=4,
            alpha=0.5, markeredgewidth=0, label=name,
        )  # fmt: skip
    for (name, mark), marker in zip(marks.items(), MARK_MARKERS, strict=False):
        axes.plot(
            mark.marginal, mark.joint, marker, color=theme.text, markersize=13 if marker == "*" else 8,
            markeredgecolor=theme.background, markeredgewidth=1, label=names[name], zorder=5, linestyle="",
        )  # fmt: skip
    for energy, set_limits in (("marginal", axes.set_xlim), ("joint", axes.set_ylim)):
        low, high = energy_range(points, energy)
        marked = [float(getattr(mark, energy)) for mark in marks.values()]
        # A marker at the border would be cut in half.
        border = 0.04 * (max([high, *marked]) - min([low, *marked]))
        set_limits(
            min([low, *(value - border for value in marked)]),
            max([high, *(value + border for value in marked)]),
        )
    _draw_zero_loss(axes, theme)
    axes.grid(True, axis="both")
    axes.set_xlabel("E(x), logits (right: rarer)")
    axes.set_ylabel("E(x, y), logits")
    axes.set_title("Energy plane", pad=38 if marks else 22)
    legend_above(axes, 3)
    return figure


DELTA_BINS = 41
# Marker and legend text of attacks by aim: increase a loss of the true class, or reach another class.
AIMS = {"loss": ("o", "increases the loss of the true class"), "class": ("D", "aims at another class")}
# Least distance of neighbouring labels, and height of the topmost one below the legend, as fractions of the axes.
_LABEL_GAP, _LABEL_TOP = 0.062, 0.96


@in_theme
def draw_moves(moves: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Draws a line per attack from the clean to the attacked images' mean in the plane of E(x) and E(x, y).

    Args:
        moves: the record of :meth:`trilemma.evaluation.diagnose.Landscape.moves`, with at least one attack.
    """
    labels = dict(zip(moves["attacks"], drawn_labels(list(moves["attacks"])), strict=True))
    figure, axes = new_figure(6.0, 4.6)
    start = _means(moves["clean"])
    ends = {name: _means(move) for name, move in moves["attacks"].items()}
    points = np.array([start, *ends.values()])
    low, high = points.min(0), points.max(0)
    margin = 0.08 * np.maximum(high - low, 1e-3)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    _draw_zero_loss(axes, theme)
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
    _label_column(axes, ends, labels, theme)
    axes.grid(True, axis="both")
    axes.set_xlabel("mean E(x), logits (right: rarer)")
    axes.set_ylabel("mean E(x, y), logits")
    axes.set_title("Where each attack moves the mean energies", pad=24)
    axes.legend(
        handles=_legend_handles(theme, {move["aim"] for move in moves["attacks"].values()}), loc="lower left",
        bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.1, handlelength=1, columnspacing=1.2, borderpad=0,
        handletextpad=0.4,
    )  # fmt: skip
    return figure


def _means(energies: Mapping[str, Any]) -> tuple[float, float]:
    return energies["marginal"]["mean"], energies["joint"]["mean"]


def _draw_zero_loss(axes: Axes, theme: Theme) -> None:
    """Draws the line E(x, y) = E(x), below which no point can lie, and labels it if it crosses the plot."""
    axes.axline((0, 0), slope=1, color=theme.muted, linewidth=1, zorder=1)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    end = min(right, top)
    if end > max(left, bottom):
        label_zero_loss(axes, end, theme)


def _label_column(
    axes: Axes, ends: Mapping[str, tuple[float, float]], labels: Mapping[str, str], theme: Theme
) -> None:
    """Writes the attack names in a column right of the plot, ordered by height, each connected to its point."""
    bottom, top = axes.get_ylim()
    names = sorted(ends, key=lambda name: ends[name][1])
    heights = spread_out(
        [(ends[name][1] - bottom) / (top - bottom) for name in names], _LABEL_GAP, _LABEL_TOP
    )
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            labels[name], ends[name], (1.03, height), textcoords="axes fraction", va="center", fontsize=9.5,
            color=theme.text,
            arrowprops={"arrowstyle": "-", "color": theme.muted, "linewidth": 0.6, "alpha": 0.7,
                        "relpos": (0, 0.5), "shrinkB": 5},
        )  # fmt: skip


def spread_out(heights: list[float], gap: float, ceiling: float) -> list[float]:
    """Returns heights at least ``gap`` apart and at most ``ceiling``, close to the given ones.

    Args:
        heights: ascending, in [0, 1].
        gap: reduced if the labels would not fit otherwise.
    """
    gap = min(gap, ceiling / max(len(heights) - 1, 1))
    spread = list(heights)
    for index in range(1, len(spread)):
        spread[index] = max(spread[index], spread[index - 1] + gap)
    for index in reversed(range(len(spread))):
        spread[index] = min(spread[index], ceiling)
        ceiling = spread[index] - gap
    return spread


def _legend_handles(theme: Theme, aims: set[str]) -> list[Line2D]:
    colour = theme.sets["adversarial"]
    entries = [(aim, *style) for aim, style in AIMS.items() if aim in aims]
    return [
        Line2D([], [], marker="s", linestyle="", color=theme.sets["clean"], label="clean"),
        *(
            Line2D(
                [], [], marker=marker, linestyle="", color=colour, label=label, markeredgewidth=1.5,
                markerfacecolor=theme.background if aim == "class" else colour,
            )
            for aim, marker, label in entries
        ),
    ]  # fmt: skip


@in_theme
def draw_deltas(clean: EnergyPoints, attacked: Mapping[str, EnergyPoints], theme: Theme = LIGHT) -> Figure:
    """Draws histograms of dE(x) and dE(x, y), clean minus attacked, one row per attack, on shared axes.

    Args:
        clean: energies of the clean images.
        attacked: attack name to the energies of the same images under that attack.
    """
    labels = dict(zip(attacked, drawn_labels(list(attacked)), strict=True))
    figure, grid = new_figure(
        6.0, 0.9 + 0.72 * len(attacked), len(attacked), 2, sharex="col", sharey="col", squeeze=False
    )
    for column, (energy, title) in enumerate(TITLES.items()):
        clean_values = getattr(clean, energy)
        deltas = {name: clean_values - getattr(points, energy) for name, points in attacked.items()}
        quantiles = np.array([np.quantile(values.numpy(), [0.005, 0.995]) for values in deltas.values()])
        low, high = min(float(quantiles.min()), 0.0), max(float(quantiles.max()), 0.0)
        margin = 0.03 * (high - low) or 1.0
        bins = np.linspace(low - margin, high + margin, DELTA_BINS + 1)
        for row, (name, values) in enumerate(deltas.items()):
            axes = grid[row, column]
            shown_values = clipped(values, float(bins[0]), float(bins[-1]))
            axes.hist(
                shown_values, bins=bins, weights=np.full(len(shown_values), 1 / len(shown_values)),
                color=theme.sets["adversarial"], alpha=0.75,
            )  # fmt: skip
            axes.axvline(0, color=theme.text, linewidth=1)
            axes.axvline(float(values.mean()), color=theme.muted, linewidth=1.2, linestyle="--")
            axes.set_yticks([])
            axes.set_xlim(bins[0], bins[-1])
            if column == 0:
                axes.set_ylabel(labels[name], rotation=0, ha="right", va="center", color=theme.text)
        grid[0, column].set_title(f"d{title}")
        grid[-1, column].set_xlabel("clean minus attacked, logits")
    return figure
