"""One run of a sweep as a task that any process can do: trains or resumes it, and evaluates it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.errors import TrilemmaError, describe
from trilemma.printing import print_traceback
from trilemma.processes import PATIENCE
from trilemma.runs.lock import writing
from trilemma.runs.run_directory import ENDED, RunDirectory
from trilemma.storing import collecting_unstored

FAILED = "failed"


@dataclass(frozen=True)
class Task:
    """What a process needs to know to make one run.

    Attributes:
        name: of the run.
        recipe, overrides: as of :func:`trilemma.train`.
        folder: of the run.
        log: file for the output of its process.
        device: as of :func:`trilemma.train`.
        protocols: to evaluate after training.
        images: number of test images, ``None`` for all.
        progress: show the progress of the training on standard error.
        epochs: of the whole training.
    """

    name: str
    recipe: str
    overrides: Mapping[str, Any]
    folder: Path
    log: Path
    device: str
    protocols: Sequence[str]
    images: int | None
    progress: bool
    epochs: float

    def __call__(self) -> str | None:
        """Does what is missing; returns ``None``, or in one line why the run failed. Only interruptions are raised."""
        try:
            # A process of a killed sweep may be saving the state of its run.
            with writing(self.folder, PATIENCE):
                pass
            if (line := failure(self.folder)) is not None:
                return line
            if not is_trained(self.folder):
                from trilemma.training.train import train

                train(
                    self.recipe, self.overrides, out=self.folder, resume="auto", progress=self.progress,
                    device=self.device,
                )  # fmt: skip
            if missing := missing_protocols(self.folder, self.protocols, self.images):
                self._evaluate(missing)
        except TrilemmaError as error:
            return " ".join(str(error).split())
        except Exception as error:
            # A bug, or a disk or memory that is full: the other runs go on.
            print_traceback(error)
            return describe(error)
        return None

    def checkpoint(self) -> Any:
        """Called by submitit when a cluster takes a job's machine away: submits the task again, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _evaluate(self, protocols: Sequence[str]) -> None:
        from trilemma.evaluation.evaluate import evaluate_run
        from trilemma.training.devices import available_device

        device = available_device(self.device)
        with collecting_unstored() as errors:
            evaluate_run(
                self.folder, protocols, images=self.images, device=device, progress=self.progress, resume=True
            )
        if errors:
            raise errors[0]


def is_trained(folder: Path) -> bool:
    """Whether the training of a run has ended well."""
    return RunDirectory(folder).status().get("status") in ENDED


def failure(folder: Path) -> str | None:
    """Why the training of a run failed after every remedy, in one line; ``None`` if it has not."""
    run = RunDirectory(folder)
    if run.status().get("status") != FAILED:
        return None
    stops = [str(event.get("message", "")) for event in run.events() if event["kind"] == "stop"]
    return " ".join(stops[-1].split()) if stops else "training failed"


def missing_protocols(folder: Path, protocols: Sequence[str], images: int | None) -> list[str]:
    """The protocols of which a run has no row of its current weights on at least as many images."""
    if not protocols:
        return []
    from trilemma.runs.read import read_contents
    from trilemma.runs.records import is_stale

    contents = read_contents(folder)
    rows = {**contents.rows, **contents.measures}

    def is_present(name: str) -> bool:
        row = rows.get(name)
        if row is None or is_stale(row):
            return False
        complete = str(row["data"]["images"]).startswith("all ")
        return complete or (images is not None and bool(row["count"] >= images))

    return [name for name in protocols if not is_present(name)]
