"""What a run folder holds so far; whatever has not been run yet is empty or ``None``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trilemma.classifier_file import read
from trilemma.config import Config
from trilemma.errors import CheckpointError
from trilemma.evaluation.records import LAST
from trilemma.metrics.energy_landscape import EnergyPoints
from trilemma.report.style import dark_path
from trilemma.samplers.starts import STARTS
from trilemma.training.run_directory import RunDirectory

Record = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """One run, as read from its folder.

    Attributes:
        about: what the finished classifier says of itself; empty without one.
        rows: protocol name to result row, those whose value is an accuracy.
        measures: the other rows: calibration, out-of-distribution detection, generation.
        last: rows of the last classifier, of either kind, where it was evaluated beside the best.
        diagnosis: the numbers of ``trilemma diagnose``, or ``None``; ``points`` the energies behind them.
        samples: the records of ``trilemma generate``.
    """

    path: Path
    config: Config
    config_text: str
    metrics: list[Record]
    events: list[Record]
    status: Record
    environment: Record
    about: Record
    rows: dict[str, Record]
    measures: dict[str, Record]
    last: dict[str, Record]
    diagnosis: Record | None
    points: dict[str, EnergyPoints] | None
    samples: list[Record]

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return self.path.resolve().name

    @property
    def minutes(self) -> float | None:
        """Training time in minutes."""
        minutes = self.status.get("minutes")
        return None if minutes is None else float(minutes)

    def picture(self, relative: str) -> tuple[bytes, bytes] | None:
        """A figure of the folder in light and dark, or ``None``."""
        light = self.path / relative
        dark = dark_path(light)
        return (light.read_bytes(), dark.read_bytes()) if light.is_file() and dark.is_file() else None


def read_contents(path: str | Path) -> Contents:
    """All that a run folder holds.

    Raises:
        RunError: not a run folder.
    """
    run = RunDirectory.open(path)
    figures = run.path / "figures"
    rows = _rows(run.path / "evaluation")
    return Contents(
        path=run.path,
        config=run.config(),
        config_text=run.config_file.read_text(encoding="utf-8"),
        metrics=run.metrics(),
        events=run.events(),
        status=run.status(),
        environment=run.environment(),
        about=_about(run),
        rows={row["protocol"]: row for row in rows if _is_accuracy(row)},
        measures={row["protocol"]: row for row in rows if not _is_accuracy(row)},
        last={row["protocol"]: row for row in _rows(run.path / "evaluation" / LAST)},
        diagnosis=_json(figures / "energies.json"),
        points=read_points(figures),
        samples=sorted(
            (
                json.loads(f.read_text(encoding="utf-8"))
                for f in sorted((run.path / "samples").glob("*.json"))
            ),
            key=start_order,
        ),
    )


def start_order(record: Record) -> int:
    """Samples from the starts that know least come first: they say most about the classifier."""
    start = record["start"]
    return STARTS.index(start) if start in STARTS else len(STARTS)


def _rows(folder: Path) -> list[Record]:
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    return [row for row in found if "protocol" in row]


def _is_accuracy(row: Record) -> bool:
    return bool(row.get("quantity", "accuracy") == "accuracy")  # the first rows did not say so


def _json(path: Path) -> Record | None:
    if not path.is_file():
        return None
    content: Record = json.loads(path.read_text(encoding="utf-8"))
    return content


def _about(run: RunDirectory) -> Record:
    """From the header of the best classifier, else of the last."""
    for file in (run.best_classifier, run.last_classifier):
        if file.is_file():
            try:
                return dict(read(file)[0]["about"])
            except CheckpointError:  # evaluation says so in full; a report shows what can be read
                continue
    return {}


def read_points(folder: Path) -> dict[str, EnergyPoints] | None:
    """The energies of ``energies.npz``, or ``None``."""
    path = folder / "energies.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    names = {name.partition("_")[0] for name in arrays}
    return {name: EnergyPoints(arrays[f"{name}_marginal"], arrays[f"{name}_joint"]) for name in names}
