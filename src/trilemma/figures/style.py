"""Common style of all figures, in a light and a dark variant; global matplotlib settings are never changed.

Colours are distinguishable for readers with any common colour-vision deficiency (tests/figures/test_style.py
measures it), and a colour always has the same meaning: one per image set, one per run.
"""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trilemma.figures.labels import DEFAULT, LONGEST, figure_labels, font_families
from trilemma.files import dark_path, write_bytes

Parameters = ParamSpec("Parameters")

# Pixels per inch of saved figures; sharp on a phone's screen at half size.
DPI = 200


@dataclass(frozen=True)
class Theme:
    """Colours of one variant.

    Attributes:
        sets: colours of ``clean``, ``adversarial`` and ``generated`` images.
        runs: colours of the runs that a page compares, in their order.
    """

    name: str
    background: str
    text: str
    muted: str
    grid: str
    alarm: str
    sets: dict[str, str]
    runs: tuple[str, ...]
    colour_map: str


LIGHT = Theme(
    "light", "#ffffff", "#1d2127", "#626a75", "#e3e6ea", "#b3261e",
    {"clean": "#2463b0", "adversarial": "#c8501e", "generated": "#129477"},
    ("#5b4fc7", "#a63d62", "#819808", "#1899c5", "#284408", "#5d0e65"),
    "viridis_r",
)  # fmt: skip
DARK = Theme(
    "dark", "#16181d", "#e6e8eb", "#9aa3ae", "#2c3138", "#ff8a80",
    {"clean": "#6aaef2", "adversarial": "#f08a4b", "generated": "#5fe3b8"},
    ("#a99bff", "#e0527a", "#d9d45a", "#1f93b0", "#5f8f2f", "#ffe3f3"),
    "viridis",
)  # fmt: skip
THEMES = (LIGHT, DARK)

# A second distinction besides colour, for greyscale print and colour-blind readers.
RUN_MARKERS = ("o", "s", "^", "D", "v", "P")
SET_LINES = {"clean": "-", "adversarial": "--", "generated": ":"}


def settings(theme: Theme) -> Any:
    """Returns the matplotlib settings of a theme, for :func:`matplotlib.rc_context`."""
    return {
        "figure.facecolor": theme.background, "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background, "axes.edgecolor": theme.grid, "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.text, "axes.titlesize": 11, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 8, "axes.labelsize": 10, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": theme.grid, "grid.linewidth": 0.8,
        "xtick.color": theme.grid, "ytick.color": theme.grid, "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
        "ytick.major.size": 0, "xtick.major.size": 3, "text.color": theme.text, "font.family": [DEFAULT],
        # A dollar sign in a name is a dollar sign, not mathematics.
        "text.parse_math": False, "font.size": 10, "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round", "legend.frameon": False, "legend.fontsize": 9.5,
        "legend.labelcolor": theme.text, "image.interpolation": "nearest",
    }  # fmt: skip


def in_theme(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Decorator of functions that draw: applies the settings of their argument ``theme``, also to ticks made later."""
    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def drawn(*arguments: Parameters.args, **options: Parameters.kwargs) -> Figure:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        with mpl.rc_context(settings(bound.arguments["theme"])):
            figure = draw(*arguments, **options)
            for axes in figure.axes:
                # The first tick is made with these settings; matplotlib copies it for the others.
                axes.xaxis.get_major_ticks(1)
                axes.yaxis.get_major_ticks(1)
        return figure

    return drawn


def drawn_labels(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Returns :func:`trilemma.figures.labels.figure_labels`, and lets texts made from now on use the fonts they need.

    Call it first in a function with :func:`in_theme`, which restores the fonts at its end.
    """
    labels = figure_labels(names, longest)
    families = dict.fromkeys([DEFAULT, *(family for label in labels for family in font_families(label))])
    mpl.rcParams["font.family"] = list(families)
    if len(families) > 1:
        # Most of the further fonts have no bold face, which matplotlib would report for every title.
        mpl.rcParams["axes.titleweight"] = "normal"
    return labels


class NotebookFigure(Figure):
    """A figure that a notebook shows, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI // 2)
        return buffer.getvalue()


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Returns a figure of ``width`` x ``height`` inches, not registered with pyplot, and its axes."""
    figure = NotebookFigure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def legend_above(axes: Axes, columns: int = 4) -> None:
    """Draws the legend between title and plot, where it covers no data."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.1, handlelength=1.6,
            columnspacing=1.2, borderpad=0, handletextpad=0.5,
        )  # fmt: skip


def render(draw: Callable[[Theme], Figure]) -> tuple[bytes, bytes]:
    """Draws a figure and returns its PNG bytes, light and dark."""
    images = []
    for theme in (LIGHT, DARK):
        buffer = io.BytesIO()
        with mpl.rc_context(settings(theme)):
            # Without metadata, the same figure gives the same bytes.
            draw(theme).savefig(buffer, format="png", metadata={"Software": None})
        images.append(buffer.getvalue())
    return images[0], images[1]


def write_pair(path: Path, images: tuple[bytes, bytes]) -> None:
    """Writes both variants of a figure, each atomically: ``path`` and its dark counterpart.

    Raises:
        NotStoredError: the folder cannot be written.
    """
    for content, target in zip(images, (path, dark_path(path)), strict=True):
        write_bytes(target, content)


def save_figure(path: str | Path, draw: Callable[[Theme], Figure]) -> None:
    """Draws a figure and writes both variants: ``NAME.png`` and ``NAME-dark.png``."""
    write_pair(Path(path), render(draw))
