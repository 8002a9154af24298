"""The palette, measured: colours far apart for every common colour vision, and visible on their page."""

from __future__ import annotations

import inspect
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from trilemma import figures
from trilemma.figures.style import DARK, LIGHT, Theme, new_figure, save_figure
from trilemma.files import dark_path

# Full-strength protanopia, deuteranopia and tritanopia on linear RGB (Machado, Oliveira and Fernandes 2009).
VISIONS = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _oklab(colour: str, vision: str) -> np.ndarray:
    lab: np.ndarray = LAB @ np.cbrt(LMS @ np.clip(VISIONS[vision] @ _linear(colour), 0, 1)) * 100
    return lab


def _contrast(first: str, second: str) -> float:
    low, high = sorted(float(_linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", figures.__all__)
def test_every_figure_is_a_documented_function_of_the_package_in_the_light_theme_by_default(name: str):
    value = getattr(figures, name)
    assert name in dir(figures)
    if name.startswith("draw_"):
        signature = inspect.signature(value)
        assert signature.parameters["theme"].default is LIGHT and signature.return_annotation == "Figure"
        assert value.__doc__.startswith("Draws ")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart_by_every_reader(theme: Theme, vision: str):
    for colours, distance in ((list(theme.sets.values()), 9), (theme.runs, 6)):
        gaps = [np.linalg.norm(_oklab(a, vision) - _oklab(b, vision)) for a, b in combinations(colours, 2)]
        assert min(gaps) > distance


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_text_and_marks_stand_out_from_the_page(theme: Theme):
    assert min(_contrast(c, theme.background) for c in (theme.text, theme.muted, theme.alarm)) >= 4.5
    assert min(_contrast(c, theme.background) for c in (*theme.sets.values(), *theme.runs)) >= 3


def test_a_figure_is_saved_on_both_pages_and_leaves_matplotlib_alone(tmp_path):
    before = dict(mpl.rcParams)

    def draw(theme: Theme):
        figure, axes = new_figure(2, 1)
        axes.plot([0, 1], [0, 1])
        return figure

    path = tmp_path / "figures" / "line.png"
    save_figure(path, draw)
    for theme, file in ((LIGHT, path), (DARK, dark_path(path))):
        corner = np.asarray(Image.open(file).convert("RGB"))[0, 0]
        assert "#" + corner.tobytes().hex() == theme.background
    assert dict(mpl.rcParams) == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["line-dark.png", "line.png"]
