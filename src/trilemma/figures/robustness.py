"""The robustness curve: accuracy under attacks against the radius."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from trilemma.figures.style import LIGHT, RUN_MARKERS, Theme, drawn_labels, in_theme, legend_above, new_figure
from trilemma.units import parse_fraction

Row = Mapping[str, Any]

# Keys on which the rows of one curve agree, besides protocol, version and norm.
SAME = ("count", "data", "checkpoint")
NORMS = {"linf": "L-inf", "l2": "L2"}


def robustness_curves(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Returns the curves in result rows: by norm and protocol, rows of two radii or more, ascending.

    Rows of purified images are left out, as a curve begins at the accuracy of the plain classifier. Rows of one curve
    agree in version, images and checkpoint; of several curves of one protocol, the one of most radii, or the first in
    ``rows``.
    """
    groups: dict[tuple[str, str, str], dict[Any, Row]] = {}
    for row in rows:
        plain = not row.get("purification")
        if plain and row["threat"] is not None and row.get("quantity", "accuracy") == "accuracy":
            same = str([row["version"], *(row.get(key) for key in SAME)])
            radii = groups.setdefault((row["threat"]["norm"], row["protocol"], same), {})
            radii[parse_fraction(row["threat"]["radius"])] = row
    curves: dict[str, dict[str, list[Row]]] = {}
    for (norm, protocol, _), radii in sorted(groups.items(), key=lambda item: -len(item[1])):
        if len(radii) > 1:
            curves.setdefault(norm, {}).setdefault(protocol, [radii[radius] for radius in sorted(radii)])
    return curves


@in_theme
def draw_robustness(
    curves: Mapping[str, Sequence[Row]], clean: Row | None = None, theme: Theme = LIGHT
) -> Figure:
    """Draws accuracy against the radius, a line per protocol with 95 % intervals; dashed: the chance level.

    Args:
        curves: protocol to its result rows of one norm, by ascending radius (:func:`robustness_curves`).
        clean: the row of ``clean``, which is drawn at radius 0.
        theme: ``LIGHT`` or ``DARK``.
    """
    labels = drawn_labels(list(curves))
    figure, axes = new_figure(5.2, 3.8)
    ticks: dict[float, str] = {0.0: "0"} if clean is not None else {}
    for index, (label, rows) in enumerate(zip(labels, curves.values(), strict=True)):
        points = [(float(parse_fraction(row["threat"]["radius"])), row) for row in rows]
        ticks |= {radius: str(row["threat"]["radius"]) for radius, row in points}
        if clean is not None:
            points = [(0.0, clean), *points]
        values = [row["value"] for _, row in points]
        # A row may have no interval.
        intervals = [(row["lower"], row["upper"]) for _, row in points]
        below = [
            math.nan if low is None else value - low
            for value, (low, _) in zip(values, intervals, strict=True)
        ]
        above = [
            math.nan if high is None else high - value
            for value, (_, high) in zip(values, intervals, strict=True)
        ]
        axes.errorbar(
            [radius for radius, _ in points], values, yerr=[below, above], label=label, elinewidth=1.2, markersize=6,
            color=theme.runs[index % len(theme.runs)], marker=RUN_MARKERS[index % len(RUN_MARKERS)],
        )  # fmt: skip
    every_row = [row for rows in curves.values() for row in rows]
    if (chance := every_row[0].get("chance")) is not None:
        axes.axhline(chance, color=theme.muted, linewidth=1, linestyle="--")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel(f"radius, {NORMS.get(every_row[0]['threat']['norm'], every_row[0]['threat']['norm'])}")
    axes.set_ylabel("accuracy")
    axes.set_title("Robustness", pad=8 + 16 * ((len(curves) + 2) // 3))
    legend_above(axes, columns=3)
    return figure
