"""The confusion matrix: which classes the images of each class are taken for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from trilemma.figures.labels import label_key, one_line
from trilemma.figures.style import LIGHT, Theme, drawn_labels, in_theme, new_figure

# Largest numbers of classes with a number in every cell, and with a name at every row; beyond, every tenth has its
# number.
NUMBERS, NAMES = 12, 40
# Longest class name, in characters.
LONGEST = 20


def confusion_key(class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs (text in the figure, full name) of the classes that :func:`draw_confusion` shortens or numbers."""
    if len(class_names) <= NAMES:
        return label_key(class_names, LONGEST)
    return [(str(number), one_line(name)) for number, name in enumerate(class_names)]


@in_theme
def draw_confusion(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str], theme: Theme = LIGHT
) -> Figure:
    """Draws the confusion matrix; the colour is the square root of the share of the images of the true class.

    Up to 12 classes every cell has its share in per cent, up to 40 every row has the name of its class, beyond that
    axes have class numbers.

    Args:
        confusion: K x K counts; rows are true classes, columns the classes that were answered.
        class_names: K names.
        theme: ``LIGHT`` or ``DARK``.
    """
    counts = np.asarray(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = len(counts)
    labels = drawn_labels(class_names, LONGEST)
    side = min(2.0 + 0.42 * classes, 6.4)
    names_width = 0.085 * max(len(label) for label in labels) if classes <= NAMES else 0.3
    # The heading needs 2.6 inches.
    figure, axes = new_figure(max(side, 2.6) + names_width, side + names_width)
    # From the page's background, so that empty cells recede, to the colour of the images' set.
    colours = LinearSegmentedColormap.from_list("shares", [theme.background, theme.sets["clean"]])
    # The root makes rare mistakes visible beside the diagonal.
    axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1))
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if classes <= NAMES:
        size = min(9.5, 300 / classes)
        axes.set_yticks(range(classes), labels, fontsize=size)
        axes.set_xticks(
            range(classes), labels, fontsize=size, rotation=45, ha="right", rotation_mode="anchor"
        )
    else:
        ticks = range(0, classes, 10)
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
    if classes <= NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                axes.text(
                    column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9,
                    color=theme.background if share > 0.3 else theme.text,
                )  # fmt: skip
    axes.set_ylabel("true class")
    axes.set_xlabel("answered class")
    axes.set_title("Confusion, per cent" if classes <= NUMBERS else "Confusion")
    return figure
