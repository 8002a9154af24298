"""Grid of samples: one labelled row per class, start images on the left and samples on the right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.figures.style import LIGHT, Theme, drawn_labels, in_theme, new_figure

COLUMNS = 5
ROWS = 20


def _mosaic(
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
    names = drawn_labels(class_names)
    classes = sorted(set(labels.tolist()))[:ROWS]
    class_indices = [(labels == label).nonzero().squeeze(1) for label in classes]
    columns = min(COLUMNS, max(len(indices) for indices in class_indices))
    cell = 0.42
    # An average character at this size is at most 0.085 inches wide; a heading needs 1.25 inches.
    name_width = max(0.9, 0.085 * max(len(names[k]) for k in classes))
    panel_width = max(columns * cell, 1.25)
    figure, panels = new_figure(0.2 + name_width + 2 * panel_width, 0.4 + len(classes) * cell, 1, 2)
    height = samples.shape[2] + max(1, samples.shape[2] // 12)
    for axes, images, title in ((panels[0], starts, "start"), (panels[1], samples, f"after {steps} steps")):
        axes.imshow(_mosaic(images, class_indices, columns, theme))
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_anchor("W")
        axes.grid(False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_yticks([])
    panels[0].set_yticks(
        [row * height + samples.shape[2] / 2 for row in range(len(classes))],
        [names[k] for k in classes],
    )
    return figure
