"""The results of several runs side by side: what ``compare`` and ``quickstart`` print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trilemma.cli.console import print_table, share

Results = list[dict[str, Any]]


def results(paths: Sequence[Path]) -> Results:
    """Per run: method, minutes of training, accuracy by protocol, and the figures of its samples."""
    from trilemma.report.contents import read_contents

    runs = [read_contents(path) for path in paths]
    protocols = sorted({name for run in runs for name in run.rows})
    return [
        {
            "run": str(run.path),
            "method": run.config.method.name,
            "minutes": run.minutes,
            "accuracy": {name: run.rows[name]["value"] if name in run.rows else None for name in protocols},
            "samples": [{"name": record["name"], **record["figures"]} for record in run.samples],
        }
        for run in runs
    ]


def print_results(found: Results) -> None:
    """Two tables: accuracy of every run, and its samples beside their starts."""
    print_table(
        [
            {
                "run": row["run"],
                "method": row["method"],
                "minutes": row["minutes"],
                **{protocol: share(value) for protocol, value in row["accuracy"].items()},
            }
            for row in found
        ]
    )
    print_table(
        [
            {
                "run": row["run"],
                "samples": record["name"],
                "named: start": share(record["start"]["named"]),
                "sample": share(record["sample"]["named"]),
                "distance: start": record["start"]["distance"],
                "sample ": record["sample"]["distance"],
                "real": record.get("real", {}).get("distance"),
            }
            for row in found
            for record in row["samples"]
        ]
    )
