"""Evaluating a classifier that comes from no run; its rows and unfinished work are kept in a folder of one's choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trilemma.classifier import Classifier
from trilemma.evaluation.records import write_row
from trilemma.evaluation.runner import Data, evaluate, state_file
from trilemma.threat import Threat


def evaluate_into(
    folder: Path | None,
    clf: Classifier,
    data: Data,
    protocols: Sequence[str],
    threat: Threat | None = None,
    images: int | None = None,
    seed: int = 0,
    *,
    lint: bool = True,
    progress: bool = False,
    resume: bool = False,
) -> dict[str, dict[str, Any]]:
    """Rows as of :func:`trilemma.evaluate`, written to ``evaluation/PROTOCOL.json`` of ``folder``, as of a run.

    Args:
        folder: made if it is not there; ``None`` keeps nothing.
        lint: look for mistakes first.
        resume: go on from what an interrupted evaluation left there.
    """
    kept = None if folder is None else folder / "evaluation"
    rows = evaluate(
        clf, data, protocols, threat, images, seed, lint=lint, progress=progress, state=kept, resume=resume
    )
    if folder is not None and kept is not None:
        for row in rows.values():
            write_row(folder, row)
        for name in protocols:
            state_file(kept, name).unlink(missing_ok=True)
    return rows
