"""Reliability diagrams: accuracy against confidence, on clean and on attacked images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trilemma.figures.style import LIGHT, Theme, in_theme, new_figure

# Protocol to the image set that it evaluates, in the order of the panels.
PANELS = {"ece": "clean", "ece-pgd-20": "adversarial"}


def reliability_rows(rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the calibration rows among result rows, clean first.

    Args:
        rows: protocol name to result row.
    """
    return [rows[name] for name in PANELS if name in rows]


@in_theme
def draw_reliability(rows: Sequence[Mapping[str, Any]], theme: Theme = LIGHT) -> Figure:
    """Draws one panel per row: accuracy per confidence bin against the diagonal, and the share of images in each bin.

    Args:
        rows: result rows of the protocols ``ece`` and ``ece-pgd-20``, at least one.
    """
    figure, axes = new_figure(
        2.6 * max(2, len(rows)),
        3.6,
        2,
        len(rows),
        squeeze=False,
        sharex=True,
        sharey="row",
        height_ratios=[3, 1],
    )
    for (upper, lower), row in zip(axes.T, rows, strict=True):
        kind = PANELS[row["protocol"]]
        bins = row["facts"]["bins"]
        width = 1 / len(bins)
        middle = (np.arange(len(bins)) + 0.5) * width
        filled = np.array([content["count"] > 0 for content in bins])
        confidence, accuracy = (
            np.array([content[key] if content["count"] else np.nan for content in bins], dtype=float)
            for key in ("confidence", "accuracy")
        )
        shares = np.array([content["count"] for content in bins]) / row["count"]
        colour = theme.sets[kind]
        upper.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, zorder=1)
        upper.bar(middle[filled], accuracy[filled], 0.92 * width, color=colour, alpha=0.3, zorder=2)
        # The calibration error is the mean length of these lines, weighted by the share of images in each bin.
        upper.vlines(
            confidence[filled], accuracy[filled], confidence[filled], color=colour, linewidth=1.2, zorder=3
        )
        upper.scatter(
            confidence[filled],
            accuracy[filled],
            4 + 120 * shares[filled],
            color=colour,
            zorder=4,
            clip_on=False,
        )
        lower.bar(middle, shares, 0.92 * width, color=colour, zorder=2)
        upper.set_title(f"{'clean' if kind == 'clean' else 'under PGD-20'}: ECE {row['value']:.3f}")
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1.02)
        lower.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        lower.set_xlabel("confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share")
    return figure
