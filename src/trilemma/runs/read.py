"""What a run folder holds so far; whatever has not been run yet is empty or ``None``. Needs neither torch nor numpy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trilemma.config.registry import STARTS
from trilemma.errors import CheckpointError
from trilemma.files import CLASSIFIER, dark_path
from trilemma.runs.records import LAST
from trilemma.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from trilemma.config.config import Config

Record = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """One run, as read from its folder.

    Attributes:
        method: name of the training method, also where its plug-in is not installed.
        about: what the finished classifier says of itself; empty without one.
        rows: protocol name to result row, those whose value is an accuracy.
        measures: the other rows: calibration, out-of-distribution detection, generation.
        last: rows of the last classifier, of either kind, where it was evaluated beside the best.
        diagnosis: the numbers of ``trilemma diagnose``, or ``None``; the energies behind them are in ``energies_file``.
        samples: the records of ``trilemma generate``.
    """

    path: Path
    method: str
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
    samples: list[Record]

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.path.resolve().name

    @property
    def minutes(self) -> float | None:
        """Training time in minutes."""
        minutes = self.status.get("minutes")
        return None if minutes is None else float(minutes)

    @cached_property
    def config(self) -> Config:
        """The validated configuration, read on first use: it may import the method."""
        return RunDirectory(self.path).config()

    @property
    def energies_file(self) -> Path | None:
        """``energies.npz`` of ``trilemma diagnose``, or ``None``."""
        path = self.path / "figures" / "energies.npz"
        return path if path.is_file() else None

    def picture(self, relative: str) -> tuple[bytes, bytes] | None:
        """A figure of the folder in light and dark, or ``None``."""
        light = self.path / relative
        dark = dark_path(light)
        return (light.read_bytes(), dark.read_bytes()) if light.is_file() and dark.is_file() else None


def read_contents(path: str | Path) -> Contents:
    """Everything that a run folder holds.

    Raises:
        RunError: not a run folder.
    """
    run = RunDirectory.open(path)
    rows = _rows(run.path / "evaluation")
    text = run.config_file.read_text(encoding="utf-8")
    return Contents(
        path=run.path,
        method=str(yaml.safe_load(text)["method"]["name"]),
        config_text=text,
        metrics=run.metrics(),
        events=run.events(),
        status=run.status(),
        environment=run.environment(),
        about=_about(run),
        rows={row["protocol"]: row for row in rows if _is_accuracy(row)},
        measures={row["protocol"]: row for row in rows if not _is_accuracy(row)},
        last={row["protocol"]: row for row in _rows(run.path / "evaluation" / LAST)},
        diagnosis=_json(run.path / "figures" / "energies.json"),
        samples=sorted((_read(file) for file in sorted((run.path / "samples").glob("*.json"))), key=start_order),
    )


def start_order(record: Record) -> int:
    """Samples from the starts that know least come first: they say most about the classifier."""
    names = list(STARTS.rows())
    return names.index(record["start"]) if record["start"] in names else len(names)


def _rows(folder: Path) -> list[Record]:
    return [row for file in sorted(folder.glob("*.json")) if "protocol" in (row := _read(file))]


def _is_accuracy(row: Record) -> bool:
    return bool(row.get("quantity", "accuracy") == "accuracy")  # the first rows did not say so


def _read(file: Path) -> Record:
    content: Record = json.loads(file.read_text(encoding="utf-8"))
    return content


def _json(path: Path) -> Record | None:
    return _read(path) if path.is_file() else None


def _about(run: RunDirectory) -> Record:
    """From the header of the best classifier, else of the last."""
    for file in (run.best_classifier, run.last_classifier):
        if file.is_file():
            try:
                return dict(CLASSIFIER.read_header(file)["about"])
            except CheckpointError:  # evaluation says so in full; a report shows what can be read
                continue
    return {}
