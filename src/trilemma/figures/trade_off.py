"""Accuracy, robustness and generation against each other: one point per run, with the 95 % intervals that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trilemma.figures.style import RUN_MARKERS, Theme, legend_above, new_figure

Row = Mapping[str, Any]


def draw_trade_off(
    runs: Sequence[tuple[str, Row, Row]], robust_name: str, theme: Theme, places: Sequence[int] | None = None
) -> Figure:
    """Clean against robust accuracy; up and to the right is better.

    Args:
        runs: name, ``clean`` row and robust row of each run.
        robust_name: the robust protocol, for the axis.
        places: of these runs among all that a page compares, which give them their colours.
    """
    figure, axes = new_figure(5.2, 4.2)
    for place, (name, clean, robust) in zip(places or range(len(runs)), runs, strict=True):
        _point(axes, place, name, clean, robust, theme)
    low = min(clean["lower"] for _, clean, _ in runs)
    margin = 0.05 * max(1.0 - low, 0.05)
    axes.set_xlim(low - margin, 1.0 + margin)
    axes.set_xlabel("clean accuracy")
    _robust_axis(axes, [robust for *_, robust in runs], robust_name)
    axes.set_title("Accuracy and robustness", pad=8 + 16 * ((len(runs) + 3) // 4))
    legend_above(axes)
    return figure


def draw_generation(
    runs: Sequence[tuple[str, Row, Row]],
    generation_name: str,
    robust_name: str,
    theme: Theme,
    places: Sequence[int] | None = None,
) -> Figure:
    """A figure of generated images, of which less is better, against robust accuracy; up and to the right is better.

    Args:
        runs: name, generation row and robust row of each run.
        generation_name, robust_name: what the axes say.
        places: as of :func:`draw_trade_off`.
    """
    figure, axes = new_figure(5.2, 4.2)
    for place, (name, generation, robust) in zip(places or range(len(runs)), runs, strict=True):
        _point(axes, place, name, generation, robust, theme)
    ends = [row[key] for *_, row, _ in runs for key in ("value", "upper") if row[key] is not None]
    axes.set_xlim(1.12 * max(ends) if max(ends) > 0 else 1.0, 0)  # reversed, so that right is better
    axes.set_xlabel(f"{generation_name} (less is better)")
    _robust_axis(axes, [robust for *_, robust in runs], robust_name)
    axes.set_title("Generation and robustness", pad=8 + 16 * ((len(runs) + 3) // 4))
    legend_above(axes)
    return figure


def _point(axes: Axes, place: int, name: str, x: Row, y: Row, theme: Theme) -> None:
    axes.errorbar(
        x["value"], y["value"], xerr=_reach(x), yerr=_reach(y), fmt=RUN_MARKERS[place % len(RUN_MARKERS)],
        color=theme.runs[place % len(theme.runs)], markersize=8, elinewidth=1.2, label=name,
    )  # fmt: skip


def _reach(row: Row) -> list[list[float]] | None:
    """How far the interval reaches down and up; ``None`` where none is known."""
    if row["lower"] is None:
        return None
    return [[row["value"] - row["lower"]], [row["upper"] - row["value"]]]


def _robust_axis(axes: Axes, rows: Sequence[Row], robust_name: str) -> None:
    axes.set_ylim(-0.03, max(0.1, 1.08 * max(row["upper"] for row in rows)))
    axes.grid(True, axis="both")
    axes.set_ylabel(f"accuracy under {robust_name}")
