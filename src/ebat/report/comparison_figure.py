"""Accuracy against robustness: one point per run, with the 95 % intervals of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ebat.report.style import RUN_MARKERS, Theme, legend_above, new_figure

Row = Mapping[str, Any]


def draw_trade_off(runs: Sequence[tuple[str, Row, Row]], robust_name: str, theme: Theme) -> Figure:
    """Up and to the right is better.

    Args:
        runs: name, ``clean`` row and robust row of each run.
        robust_name: the robust protocol, for the axis.
    """
    figure, axes = new_figure(5.2, 4.2)
    for place, (name, clean, robust) in enumerate(runs):
        colour = theme.runs[place % len(theme.runs)]
        axes.errorbar(
            clean["value"], robust["value"],
            xerr=[[clean["value"] - clean["lower"]], [clean["upper"] - clean["value"]]],
            yerr=[[robust["value"] - robust["lower"]], [robust["upper"] - robust["value"]]],
            fmt=RUN_MARKERS[place % len(RUN_MARKERS)], color=colour, markersize=8, elinewidth=1.2, label=name,
        )  # fmt: skip
    low = min(clean["lower"] for _, clean, _ in runs)
    margin = 0.05 * max(1.0 - low, 0.05)
    axes.set_xlim(low - margin, 1.0 + margin)
    axes.set_ylim(-0.03, max(0.1, 1.08 * max(robust["upper"] for _, _, robust in runs)))
    axes.grid(True, axis="both")
    axes.set_xlabel("clean accuracy")
    axes.set_ylabel(f"accuracy under {robust_name}")
    axes.set_title("Accuracy and robustness", pad=8 + 16 * ((len(runs) + 3) // 4))
    legend_above(axes)
    return figure
