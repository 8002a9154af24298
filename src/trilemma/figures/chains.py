"""Figures of the chains that generate images: what they show over the steps, and their energy beside real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.figures.sample_grid import CELL, ROWS, mosaic, name_rows, show_mosaic
from trilemma.figures.style import LIGHT, Theme, drawn_labels, in_theme, legend_above, new_figure

# Half width of the band of real images, in standard deviations.
BAND = 2.0


@in_theme
def draw_trajectories(
    trajectories: Tensor,
    steps: Sequence[int],
    labels: Tensor,
    class_names: Sequence[str],
    theme: Theme = LIGHT,
) -> Figure:
    """Draws chains as rows of images, from the start on the left to the sample on the right.

    Args:
        trajectories: ``[T, N, C, H, W]`` in [0, 1], C of 1 or 3; at most the first 20 chains are drawn.
        steps: the T steps at which the chains were recorded.
        labels: int64 ``[N]``, the class of each chain.
        class_names: K names.
        theme: ``LIGHT`` or ``DARK``.

    Raises:
        ConfigError: not as many steps as images per chain.
    """
    count, chains = trajectories.shape[:2]
    if len(steps) != count:
        raise ConfigError(
            f"draw_trajectories: {len(steps)} steps for {count} images per chain; give one each"
        )
    names = drawn_labels(class_names)
    chains = min(chains, ROWS)
    images = trajectories.flatten(0, 1)
    rows = [torch.arange(count) * trajectories.shape[1] + chain for chain in range(chains)]
    shown = [names[label] for label in labels[:chains].tolist()]
    name_width = max(0.4, 0.085 * max(len(name) for name in shown))
    figure, axes = new_figure(0.2 + name_width + count * CELL, 0.45 + chains * CELL)
    show_mosaic(axes, mosaic(images, rows, count, theme))
    width = trajectories.shape[4]
    pitch = width + max(1, trajectories.shape[3] // 12)
    axes.set_xticks([column * pitch + width / 2 for column in range(count)], [str(step) for step in steps])
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    axes.set_title("step", fontsize=10, loc="left")
    name_rows(axes, shown, trajectories.shape[3])
    return figure


@in_theme
def draw_chain_energies(
    joint: Tensor,
    steps: Sequence[int],
    labels: Tensor,
    means: Tensor,
    stds: Tensor,
    theme: Theme = LIGHT,
) -> Figure:
    """Draws the joint energy of chains over the steps, as a distance from that of training images of their class.

    ``(E(x, y) - m_y) / s_y`` with mean and standard deviation over the training images of class y, so that chains of
    all classes share an axis on which two standard deviations around 0 are the energies of real images. Chains that end
    outside this band have a colour of their own.

    Args:
        joint: ``[T, N]``, E(x, y) of each chain at each of the steps.
        steps: T numbers of steps.
        labels: int64 ``[N]``.
        means, stds: ``[K]``, of the training images of each class.
        theme: ``LIGHT`` or ``DARK``.

    Raises:
        ConfigError: not as many steps as energies per chain.
    """
    if len(steps) != len(joint):
        raise ConfigError(
            f"draw_chain_energies: {len(steps)} steps for {len(joint)} energies per chain; give one each"
        )
    standard = ((joint - means[labels]) / stds[labels]).cpu()
    outside = standard[-1].abs() > BAND
    figure, axes = new_figure(5.4, 3.4)
    axes.axhspan(-BAND, BAND, color=theme.sets["clean"], alpha=0.16, linewidth=0, label="real images")
    for away, colour, word in (
        (False, theme.sets["generated"], "chains"),
        (True, theme.alarm, "chains that end outside"),
    ):
        own = standard[:, outside == away]
        if own.shape[1]:
            lines = axes.plot(steps, own.numpy(), color=colour, linewidth=0.9, alpha=0.6)
            lines[0].set_label(f"{own.shape[1]} {word}")
    axes.axhline(0.0, color=theme.sets["clean"], linewidth=1.0)
    # Starts may be hundreds of standard deviations away.
    axes.set_yscale("symlog", linthresh=2 * BAND)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(steps[0], steps[-1])
    axes.set_xlabel("step")
    axes.set_ylabel("E(x, y), standard deviations")
    axes.set_title("Energy of the chains", pad=26)
    legend_above(axes)
    return figure
