"""Evaluating a run folder: its best classifier on its own test images, written beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ebat.data.image_set import Splits
from ebat.evaluation.records import write_row
from ebat.evaluation.runner import DEFAULT_PROTOCOLS, Data, evaluate, open_data
from ebat.loading import load
from ebat.threat import Threat
from ebat.training.build import build_data
from ebat.training.run_directory import RunDirectory


def run_splits(path: str | Path) -> Splits:
    """The train, held-out and test images that the run at ``path`` was configured with."""
    return build_data(RunDirectory.open(path).config())


def evaluate_run(
    path: str | Path,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    data: Data | None = None,
    threat: Threat | None = None,
    images: int | None = None,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Rows as of :func:`ebat.evaluate`, written to ``evaluation/PROTOCOL.json`` of the run.

    Args:
        path: a run folder.
        data: other images than the run's own test part.
        device: where to work.

    Raises:
        RunError: not a run folder.
        CheckpointError: the run has no finished classifier yet.
    """
    config = RunDirectory.open(path).config()
    clf = load(path).to(device)
    if data is None:
        data = open_data(clf, config.data.name, config.data.root, config.data.size)
    rows = evaluate(clf, data, protocols, threat, images, seed, progress=progress)
    for row in rows.values():
        write_row(Path(path), row)
    return rows
