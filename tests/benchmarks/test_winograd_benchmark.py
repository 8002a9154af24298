"""The benchmark of Winograd convolutions, at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import winograd


def test_layers_and_networks_get_a_row_and_both_ways_are_right(tmp_path: Path) -> None:
    results = tmp_path / "winograd.json"
    winograd.main(["--networks", "WRN-28-2", "--batches", "2", "--rounds", "1", "--results", str(results)])
    rows = json.loads(results.read_text())["rows"]
    (network,) = (row for row in rows.values() if "attack" in row)
    assert network["attack"] > 0 and network["loss"] > 0
    layers = [row for row in rows.values() if "pays" in row]
    # 64 and 128 channels, at 4x4 and 2x2
    assert len(layers) == 2 and len(rows) == 3
    for row in layers:
        for product in winograd.PRODUCTS:
            assert 0 < row[product]["error"] < 1e-5 and 0 < row[product]["error_direct"] < 1e-5
    page = results.with_suffix(".md").read_text()
    assert all(name in page for name in rows)
