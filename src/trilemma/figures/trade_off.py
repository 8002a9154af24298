"""Scatter plots of accuracy, robustness and generation quality: one point per run, with known 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trilemma.figures.style import LIGHT, RUN_MARKERS, Theme, drawn_labels, in_theme, legend_above, new_figure

Row = Mapping[str, Any]


@in_theme
def draw_trade_off(
    runs: Sequence[tuple[str, Row, Row]],
    robust_name: str,
    theme: Theme = LIGHT,
    run_indices: Sequence[int] | None = None,
) -> Figure:
    """Draws robust against clean accuracy; up and to the right is better.

    Args:
        runs: name, ``clean`` row and robust row of each run.
        robust_name: robust protocol, for the axis label.
        run_indices: indices of these runs among all runs of a page, which set their colours; default 0, 1, ...
    """
    labels = drawn_labels([name for name, *_ in runs])
    figure, axes = new_figure(5.2, 4.2)
    for index, label, (_, clean, robust) in zip(run_indices or range(len(runs)), labels, runs, strict=True):
        _point(axes, index, label, clean, robust, theme)
    low = min(clean["lower"] for _, clean, _ in runs)
    margin = 0.05 * max(1.0 - low, 0.05)
    axes.set_xlim(low - margin, 1.0 + margin)
    axes.set_xlabel("clean accuracy")
    _robust_axis(axes, [robust for *_, robust in runs], robust_name)
    axes.set_title("Accuracy and robustness", pad=8 + 16 * ((len(runs) + 3) // 4))
    legend_above(axes)
    return figure


@in_theme
def draw_generation(
    runs: Sequence[tuple[str, Row, Row]],
    generation_name: str,
    robust_name: str,
    theme: Theme = LIGHT,
    run_indices: Sequence[int] | None = None,
) -> Figure:
    """Draws robust accuracy against a metric of generated images, of which less is better.

    Args:
        runs: name, generation row and robust row of each run.
        generation_name, robust_name: axis labels.
        run_indices: as in :func:`draw_trade_off`.
    """
    labels = drawn_labels([name for name, *_ in runs])
    figure, axes = new_figure(5.2, 4.2)
    for index, label, (_, generation, robust) in zip(
        run_indices or range(len(runs)), labels, runs, strict=True
    ):
        _point(axes, index, label, generation, robust, theme)
    ends = [row[key] for *_, row, _ in runs for key in ("value", "upper") if row[key] is not None]
    # reversed, so that right is better
    axes.set_xlim(1.12 * max(ends) if max(ends) > 0 else 1.0, 0)
    axes.set_xlabel(f"{generation_name} (less is better)")
    _robust_axis(axes, [robust for *_, robust in runs], robust_name)
    axes.set_title("Generation and robustness", pad=8 + 16 * ((len(runs) + 3) // 4))
    legend_above(axes)
    return figure


def _point(axes: Axes, index: int, name: str, x: Row, y: Row, theme: Theme) -> None:
    axes.errorbar(
        x["value"], y["value"], xerr=_error_bar(x), yerr=_error_bar(y), fmt=RUN_MARKERS[index % len(RUN_MARKERS)],
        color=theme.runs[index % len(theme.runs)], markersize=8, elinewidth=1.2, label=name,
    )  # fmt: skip


def _error_bar(row: Row) -> list[list[float]] | None:
    """Returns the distances from the value to both ends of its interval; ``None`` if there is none."""
    if row["lower"] is None:
        return None
    return [[row["value"] - row["lower"]], [row["upper"] - row["value"]]]


def _robust_axis(axes: Axes, rows: Sequence[Row], robust_name: str) -> None:
    axes.set_ylim(-0.03, max(0.1, 1.08 * max(row["upper"] for row in rows)))
    axes.grid(True, axis="both")
    axes.set_ylabel(f"accuracy under {robust_name}")
