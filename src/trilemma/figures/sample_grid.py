"""Samples in a grid: one labelled row per class, the starts on the left and what became of them on the right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.figures.style import Theme, new_figure

COLUMNS = 5
ROWS = 20


def _mosaic(
    images: Tensor, rows: list[Tensor], columns: int, theme: Theme
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """``[H', W', 3]``: the images at ``rows``, apart by a line of the page's colour."""
    channels, height, width = images.shape[1:]
    gap = max(1, height // 12)
    page = torch.tensor([int(theme.background[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    canvas = page.repeat(len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 1)
    for r, places in enumerate(rows):
        for c, place in enumerate(places[:columns].tolist()):
            image = images[place].expand(3, -1, -1) if channels == 1 else images[place]
            top, left = r * (height + gap), c * (width + gap)
            canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = canvas.clamp(0, 1).numpy()
    return array


def draw_grid(
    starts: Tensor, samples: Tensor, labels: Tensor, class_names: Sequence[str], steps: int, theme: Theme
) -> Figure:
    """The first samples of each class, unpicked, at the same place on both sides.

    Args:
        starts, samples: ``[N, C, H, W]`` in [0, 1], C of 1 or 3.
        labels: int64 ``[N]``.
        class_names: K names; at most 20 classes are drawn.
        steps: sampler steps between the two, for the heading.
    """
    shown = sorted(set(labels.tolist()))[:ROWS]
    rows = [(labels == label).nonzero().squeeze(1) for label in shown]
    columns = min(COLUMNS, max(len(places) for places in rows))
    cell = 0.42
    figure, both = new_figure(1.1 + 2 * columns * cell, 0.4 + len(rows) * cell, 1, 2)
    height = samples.shape[2] + max(1, samples.shape[2] // 12)
    for axes, images, title in ((both[0], starts, "start"), (both[1], samples, f"after {steps} steps")):
        axes.imshow(_mosaic(images, rows, columns, theme))
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_yticks([])
    both[0].set_yticks(
        [r * height + samples.shape[2] / 2 for r in range(len(rows))], [class_names[k] for k in shown]
    )
    return figure
