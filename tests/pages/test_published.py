"""The published results of networks of a similar size stand beside a run's own row of AutoAttack, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trilemma.pages.html import write_report
from trilemma.runs.records import write_row


def row(**changes: Any) -> dict[str, Any]:
    return {
        "protocol": "autoattack-standard", "version": 1, "quantity": "accuracy", "better": "higher", "value": 0.515,
        "lower": 0.505, "upper": 0.525, "chance": 0.1, "also": {}, "count": 10_000,
        "data": {"name": "cifar10", "split": "test", "images": "all 10000"},
        "threat": {"norm": "linf", "radius": "8/255"}, "seed": 0, "checkpoint": {}, "parameters": 11_173_962,
        "seconds": 1.0, "device": "cpu", "trilemma": "0", "torch": "2", "facts": {"attacked": 8_234}, "lint": None,
    } | changes  # fmt: skip


def report(folder: Path, content: dict[str, Any]) -> str:
    write_row(folder, content)
    return write_report(folder).read_text(encoding="utf-8").replace("<wbr>", "")


def test_networks_of_the_same_size_stand_beside_the_own_row(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    page = report(tmp_path / "mine", row())
    part = page.partition('<h3 style="margin-top: 2rem">Published results</h3>')[2].partition("</table>")[0]
    lines = [line for line in part.splitlines() if line.startswith("<tr>")]
    assert "mine (this page)" in lines[0] and "82.3 %" in lines[0] and "51.5 %" in lines[0]
    assert "11.17 M parameters" in lines[0]
    assert "Gowal2021Improving_R18_ddpm_100m" in lines[1] and "58.5 %" in lines[1] and len(lines) == 6
    assert "RobustBench of 2025-03-31, MIT licence" in part and "https://" not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"name": "cifar10-jpeg", "split": "test", "images": "all 10000"}},
        {"threat": {"norm": "linf", "radius": "4/255"}},
        {"data": {"name": "cifar10", "split": "train", "images": "all 50000"}},
    ],
)
def test_nothing_published_is_shown_beside_other_data_or_another_radius(tmp_path: Path, changes: Any) -> None:
    assert "Published results" not in report(tmp_path, row(**changes))
