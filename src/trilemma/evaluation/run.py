"""Evaluating a run folder: its best and its last classifier on its own test images, written beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from trilemma.classifier import Classifier
from trilemma.data.image_set import Splits
from trilemma.errors import CheckpointError
from trilemma.evaluation.records import LAST, write_row
from trilemma.evaluation.runner import DEFAULT_PROTOCOLS, Data, evaluate, open_data, state_file
from trilemma.loading import load
from trilemma.threat import Threat
from trilemma.training.build import build_data
from trilemma.training.run_directory import RunDirectory

Row = dict[str, Any]
Which = Literal["best", "last", "both"]


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
    checkpoint: Which = "best",
    device: torch.device | str = "cpu",
    lint: bool = True,
    progress: bool = False,
    resume: bool = False,
) -> dict[str, Row]:
    """Rows as of :func:`trilemma.evaluate`, written to ``evaluation/PROTOCOL.json`` of the run.

    Test images choose nothing here: ``best`` was chosen while training, on held-out images, and every row says in
    ``checkpoint`` which one it is of. Beside a best one, rows of the last are written to ``evaluation/last``.

    Args:
        path: a run folder.
        data: other images than the run's own test part.
        checkpoint: ``best`` (the last where a run has no best), ``last``, or ``both``.
        device: where to work.
        lint: look for mistakes first.
        resume: go on from what an interrupted evaluation left in the evaluation folder; without it, start anew.

    Returns:
        Protocol name to row; of ``both``, the rows of the last are called ``PROTOCOL@last``.

    Raises:
        RunError: not a run folder.
        CheckpointError: the run has no finished classifier yet, or not the one asked for.
    """
    run = RunDirectory.open(path)
    config = run.config()
    found: dict[str, Row] = {}
    before: Classifier | None = None
    folders: list[Path] = []
    for name in chosen_checkpoints(run, checkpoint):
        clf = load(run.classifiers()[name]).to(device)
        beside = name == "last" and "best" in run.classifiers()
        folder = run.path / "evaluation" / (LAST if beside else "")
        if data is None:
            data = open_data(clf, config.data.name, config.data.root, config.data.size)
        if before is not None and same_weights(before, clf):  # the last one was the best: measured once
            rows = {key: {**row, "checkpoint": dict(clf.about)} for key, row in found.items()}
        else:
            rows = evaluate(
                clf, data, protocols, threat, images, seed,
                lint=lint, progress=progress, state=folder, resume=resume,
            )  # fmt: skip
        for row in rows.values():
            write_row(run.path, row, LAST if beside else "")
        found |= rows if before is None else {f"{key}@{name}": row for key, row in rows.items()}
        before = clf
        folders.append(folder)
    for (
        folder
    ) in folders:  # only now: an evaluation of both that is interrupted in the second keeps the first
        for protocol in [protocols] if isinstance(protocols, str) else protocols:
            state_file(folder, protocol).unlink(missing_ok=True)
    return found


def chosen_checkpoints(run: RunDirectory, asked: Which) -> list[str]:
    """Which classifiers of a run are meant, in the order to evaluate them.

    Raises:
        CheckpointError: there is none, or not the one asked for.
    """
    there = list(run.classifiers())
    if not there:
        load(run.path)  # says why
    if asked == "last" and "last" not in there:
        raise CheckpointError(f"{run.path}: has no last classifier, only {there[0]}; leave --checkpoint out")
    return there if asked == "both" else ["last"] if asked == "last" else there[:1]


def same_weights(first: Classifier, second: Classifier) -> bool:
    """Whether two classifiers of one run are the same one."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) for key, value in ours.items()
    )
