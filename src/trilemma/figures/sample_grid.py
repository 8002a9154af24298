"""Grids of images in two panels, one labelled row per class: samples beside their starts or their nearest images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.figures.style import LIGHT, Theme, drawn_labels, in_theme, new_figure

COLUMNS = 5
ROWS = 20
# Inches per image.
CELL = 0.42


def mosaic(
    images: Tensor, class_indices: list[Tensor], columns: int, theme: Theme
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Returns one image ``[H', W', 3]`` with a row of images per class, separated by lines in the background colour.

    Args:
        class_indices: per class, the indices of its images; at most the first ``columns`` of each are used.
    """
    channels, height, width = images.shape[1:]
    gap = max(1, height // 12)
    background = torch.tensor([int(theme.background[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    canvas = background.repeat(len(class_indices) * (height + gap) - gap, columns * (width + gap) - gap, 1)
    for row, indices in enumerate(class_indices):
        for column, index in enumerate(indices[:columns].tolist()):
            image = images[index].expand(3, -1, -1) if channels == 1 else images[index]
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = canvas.clamp(0, 1).numpy()
    return array


def first_of_each_class(labels: Tensor, count: int) -> dict[int, Tensor]:
    """The positions of the first ``count`` images of each class, by class, of at most the first 20 classes.

    Args:
        labels: int64 ``[N]``.
    """
    classes = sorted(set(labels.tolist()))[:ROWS]
    return {label: (labels == label).nonzero().squeeze(1)[:count] for label in classes}


@in_theme
def draw_grid(
    starts: Tensor,
    samples: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    steps: int,
    theme: Theme = LIGHT,
) -> Figure:
    """Draws the first samples of each class, without selection, next to their start images in the same arrangement.

    Args:
        starts, samples: ``[N, C, H, W]`` in [0, 1], C of 1 or 3.
        labels: int64 ``[N]``.
        class_names: K names; at most 20 classes are drawn.
        steps: number of sampler steps, for the heading.
        theme: ``LIGHT`` or ``DARK``.
    """
    return _draw_pairs((starts, samples), ("start", f"after {steps} steps"), labels, class_names, theme)


@in_theme
def draw_neighbours(
    samples: Tensor,
    neighbours: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    theme: Theme = LIGHT,
) -> Figure:
    """Draws the first samples of each class next to the training image that is nearest to each.

    A sample that looks like its neighbour is a copy of it; one that looks like no digit or object at all is a failure,
    and is drawn too.

    Args:
        samples, neighbours: ``[N, C, H, W]`` in [0, 1], C of 1 or 3; neighbour i belongs to sample i.
        labels, class_names, theme: as in :func:`draw_grid`.
    """
    return _draw_pairs((samples, neighbours), ("sample", "nearest image"), labels, class_names, theme)


def _draw_pairs(
    pair: tuple[Tensor, Tensor],
    titles: tuple[str, str],
    labels: Tensor,
    class_names: Sequence[str],
    theme: Theme,
) -> Figure:
    names = drawn_labels(class_names)
    shown = first_of_each_class(labels, COLUMNS)
    classes, class_indices = list(shown), list(shown.values())
    columns = max(len(indices) for indices in class_indices)
    # An average character at this size is at most 0.085 inches wide; a heading needs 1.25 inches.
    name_width = max(0.9, 0.085 * max(len(names[k]) for k in classes))
    panel_width = max(columns * CELL, 1.25)
    figure, panels = new_figure(0.2 + name_width + 2 * panel_width, 0.4 + len(classes) * CELL, 1, 2)
    for axes, images, title in zip(panels, pair, titles, strict=True):
        show_mosaic(axes, mosaic(images, class_indices, columns, theme))
        axes.set_title(title, fontsize=10, loc="left")
    name_rows(panels[0], [names[k] for k in classes], pair[0].shape[2])
    return figure


def show_mosaic(axes: Axes, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    """Shows an image without axes."""
    axes.imshow(image)
    axes.set_anchor("W")
    axes.grid(False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks([])


def name_rows(axes: Axes, names: Sequence[str], height: int) -> None:
    """Writes a name beside each row of a mosaic of images of ``height`` pixels."""
    pitch = height + max(1, height // 12)
    axes.set_yticks([row * pitch + height / 2 for row in range(len(names))], list(names))
