"""The benchmarks of growth and of streaming: exponents of power laws, and pages and figures of a few rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import growth, streaming
from trilemma.figures.style import LIGHT


def test_the_exponent_of_a_power_law() -> None:
    assert growth.slope([(2, 3 * 2**1.5), (8, 3 * 8**1.5), (50, 3 * 50**1.5)]) == pytest.approx(1.5)
    assert growth.slope([(1, 1.0)]) is None and growth.slope([(1, 1.0), (2, 0.0)]) is None


def test_points_of_a_growing_quantity_are_measured_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("class PCA, side", "class Gaussians, classes", "training step, batch")
    rows: dict[str, Any] = {}
    for name, sizes in zip(names, ((4, 8), (10, 20), (1, 2)), strict=True):
        small = (*growth.SERIES[name][:3], {"side": 8, "images": 40})
        monkeypatch.setitem(growth.SERIES, name, small)
        rows |= {f"{name} {size}": growth.point(name, size) for size in sizes}
    assert rows["class PCA, side 8"]["stored"].endswith("directions")
    # 64 samples of 20 classes, 3x8x8 pixels of 4 bytes.
    assert rows["class Gaussians, classes 20"]["stored"] == f"{64 * 20 * 192 * 4 / 1e6:.1f} MB of samples"
    assert all(row["seconds"] > 0 for row in rows.values())
    text = growth.page({"command": growth.COMMAND, "about": "about", "rows": rows})
    assert "| class Gaussians, classes | 10 to 20 |" in text
    figure = growth.draw(rows, LIGHT)
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == list(growth.PANELS)


def test_the_page_of_streaming_has_the_means_of_both_sides() -> None:
    rows = {
        f"{side}, seed {seed}": {"side": side, "seed": seed, "epochs": 2, "clean": clean, "seconds": 30.0}
        for side, both in (("resident", (0.5, 0.6)), ("shards", (0.54, 0.58)))
        for seed, clean in enumerate(both)
    }
    text = streaming.page({"command": streaming.COMMAND, "about": "about", "rows": rows})
    assert "| resident | 55.00% | 30 |" in text and "| shards | 56.00% | 30 |" in text
