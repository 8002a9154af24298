"""Figures of counterfactual images: original, result, their difference, and the energies along the way."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trilemma.figures.labels import DEFAULT, figure_labels
from trilemma.figures.sample_grid import ROWS, mosaic, name_rows, show_mosaic
from trilemma.figures.style import LIGHT, Theme, drawn_labels, in_theme, legend_above, new_figure

# Longest class name in a heading or legend, in characters.
LONGEST = 14
# Inches per image of the combined figure.
CELL = 0.62
# Least side of an image in an animation, in pixels; duration of its frames, and of the last one, in milliseconds.
SIDE, FRAME, LAST_FRAME = 196, 90, 1500


def difference_scale(originals: Tensor, results: Tensor) -> Tensor:
    """The largest change of a pixel value of each image, ``[N]``, at which its difference map is saturated."""
    return (results - originals).abs().flatten(1).amax(1)


def difference_map(originals: Tensor, results: Tensor, scale: Tensor | None = None) -> Tensor:
    """The changes of images as images ``[N, 3, H, W]`` in [0, 1].

    Of grey images, white is no change, blue a darker and red a brighter pixel. Of colour images, grey is no change, and
    each channel is brighter or darker as it was changed.

    Args:
        originals, results: ``[N, C, H, W]`` in [0, 1], C of 1 or 3.
        scale: ``[N]``, the change that is drawn in the darkest colours; by default :func:`difference_scale`.
    """
    scale = difference_scale(originals, results) if scale is None else scale
    scale = scale.clamp_min(1e-12).view(-1, 1, 1, 1)
    share = 0.5 + (results - originals) / (2 * scale)
    if share.shape[1] != 1:
        return share
    colours = colormaps["RdBu_r"](share[:, 0].numpy())[..., :3]
    return torch.from_numpy(np.ascontiguousarray(colours, np.float32)).permute(0, 3, 1, 2)


@in_theme
def draw_counterfactual(
    original: Tensor,
    result: Tensor,
    trajectory: Mapping[str, Sequence[float]],
    classes: tuple[str, str, str],
    along: str = "step",
    theme: Theme = LIGHT,
) -> Figure:
    """Draws an image, its counterfactual, the difference of both, and energies and confidence along the way.

    Args:
        original, result: ``[C, H, W]`` in [0, 1], C of 1 or 3.
        trajectory: M values each of ``marginal energy``, ``target energy``, ``original energy``,
            ``target confidence`` and ``original confidence``, and of ``along``.
        classes: names of the class of the original, of the target, and of the class of the result.
        along: the key of the horizontal axis, ``step`` or ``distance``.
        theme: ``LIGHT`` or ``DARK``.
    """
    different = list(dict.fromkeys(classes))
    texts = dict(zip(different, drawn_labels(different, LONGEST), strict=True))
    first, target, final = (texts[name] for name in classes)
    pair = torch.stack([original, result])
    difference = difference_map(pair[:1], pair[1:])
    scale = float(difference_scale(pair[:1], pair[1:]))
    figure, panels = new_figure(10.5, 2.5, 1, 5, width_ratios=(1, 1, 1, 1.35, 1.35))
    shown = (
        (pair[:1], f"original: {first}"),
        (pair[1:], f"result: {final}"),
        (difference, f"difference, \u00b1{scale:.2g}"),
    )
    for axes, (images, title) in zip(panels, shown, strict=False):
        show_mosaic(axes, mosaic(images, [torch.tensor([0])], 1, theme))
        axes.set_title(title, fontsize=10)
    _draw_way(panels[3:], trajectory, first, target, along, theme)
    return figure


@in_theme
def draw_way(
    trajectory: Mapping[str, Sequence[float]],
    classes: tuple[str, str],
    along: str = "step",
    theme: Theme = LIGHT,
) -> Figure:
    """Draws energies and confidence along the way to a counterfactual, one above the other, for a narrow page.

    Args:
        trajectory, along: as in :func:`draw_counterfactual`.
        classes: names of the class of the original and of the target.
        theme: ``LIGHT`` or ``DARK``.
    """
    different = list(dict.fromkeys(classes))
    texts = dict(zip(different, drawn_labels(different, LONGEST), strict=True))
    figure, panels = new_figure(5.2, 4.6, 2, 1)
    _draw_way(panels, trajectory, texts[classes[0]], texts[classes[1]], along, theme)
    panels[0].set_ylabel("logits")
    return figure


def _draw_way(
    panels: Sequence[Axes],
    trajectory: Mapping[str, Sequence[float]],
    first: str,
    target: str,
    along: str,
    theme: Theme,
) -> None:
    """Draws energies into the first and confidences into the second panel; ``first``, ``target``: drawn labels."""
    energies = (
        ("marginal energy", "E(x)", theme.text, "-"),
        ("original energy", f"E(x, {first})", theme.sets["clean"], "--"),
        ("target energy", f"E(x, {target})", theme.sets["generated"], "-"),
    )
    confidences = (
        ("original confidence", first, theme.sets["clean"], "--"),
        ("target confidence", target, theme.sets["generated"], "-"),
    )
    for axes, title, lines in ((panels[0], "energy", energies), (panels[1], "confidence", confidences)):
        # Of one point there is no line, and no scale of the way.
        marker = "o" if len(trajectory[along]) == 1 else None
        if marker is not None:
            axes.set_xticks([0])
        for key, name, colour, style in lines:
            values = trajectory[key]
            # They are the same if the original is of the target class.
            if first == target and key.startswith("original"):
                continue
            axes.plot(
                trajectory[along], values, style, color=colour, label=name, marker=marker, linewidth=1.4
            )
        axes.set_xlabel(along)
        axes.set_title(title, fontsize=10, pad=20)
        legend_above(axes, 3)
    panels[1].set_ylim(-0.03, 1.03)


@in_theme
def draw_counterfactuals(
    originals: Tensor, results: Tensor, captions: Sequence[str], theme: Theme = LIGHT
) -> Figure:
    """Draws images, their counterfactuals and the differences, with their scales, one row per image.

    Args:
        originals, results: ``[N, C, H, W]`` in [0, 1], C of 1 or 3; at most the first 20 are drawn.
        captions: N texts, written beside the rows.
        theme: ``LIGHT`` or ``DARK``.
    """
    count = min(len(originals), ROWS)
    different = list(dict.fromkeys(captions[:count]))
    names = dict(zip(different, drawn_labels(different, 48), strict=True))
    texts = [names[caption] for caption in captions[:count]]
    rows = [torch.tensor([index]) for index in range(count)]
    text_width = 0.085 * max(len(text) for text in texts)
    aspect = originals.shape[3] / originals.shape[2]
    column = max(CELL * aspect, 0.85)
    figure, panels = new_figure(0.7 + text_width + 3 * column, 0.45 + count * CELL, 1, 3)
    differences = difference_map(originals[:count], results[:count])
    scales = difference_scale(originals[:count], results[:count]).tolist()
    for axes, images, title in zip(
        panels, (originals, results, differences), ("original", "result", "difference"), strict=True
    ):
        show_mosaic(axes, mosaic(images, rows, 1, theme))
        axes.set_title(title, fontsize=10, loc="left")
    name_rows(panels[0], texts, originals.shape[2])
    name_rows(panels[2], [f"\u00b1{scale:.2g}" for scale in scales], originals.shape[2])
    panels[2].yaxis.tick_right()
    return figure


def animate_counterfactual(frames: Tensor, captions: Sequence[str]) -> bytes:
    """An animated WebP: each frame with its difference from the first one at its right, and a caption below.

    The differences of all frames have the scale of the last one.

    Args:
        frames: ``[F, C, H, W]`` in [0, 1].
        captions: F texts.
    """
    different = list(dict.fromkeys(captions))
    names = dict(zip(different, figure_labels(different, 64), strict=True))
    originals = frames[:1].expand_as(frames)
    differences = difference_map(originals, frames, difference_scale(frames[:1], frames[-1:]))
    font = ImageFont.truetype(font_manager.findfont(DEFAULT), 13)
    width, height = frames.shape[3], frames.shape[2]
    factor = max(1, -(-SIDE // min(width, height)))
    pictures = []
    for image, change, text in zip(frames, differences, captions, strict=True):
        row = [_enlarged(part, factor) for part in (image.expand(3, -1, -1), change)]
        canvas = Image.new("RGB", (2 * width * factor + 8, height * factor + 24), "white")
        canvas.paste(row[0], (0, 0))
        canvas.paste(row[1], (width * factor + 8, 0))
        ImageDraw.Draw(canvas).text((4, height * factor + 4), names[text], fill="black", font=font)
        pictures.append(canvas)
    stream = io.BytesIO()
    durations = [FRAME] * (len(pictures) - 1) + [LAST_FRAME]
    pictures[0].save(
        stream, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, lossless=True
    )
    return stream.getvalue()


def _enlarged(image: Tensor, factor: int) -> Image.Image:
    """An image ``[3, H, W]`` in [0, 1] with pixels of ``factor`` x ``factor``."""
    pixels: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
