"""Shows the progress of a sweep on standard error: a bar over all runs, and a line for each run that has ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from trilemma.printing import print_message
from trilemma.progress import ProgressBar, can_draw
from trilemma.runs.run_directory import RunDirectory
from trilemma.sweeps.task import Task
from trilemma.units import duration

# The last line of a metrics file is shorter than this.
_LINE_BYTES = 16_384


class SweepProgress:
    """A context that shows how many of the tasks have ended, and the completed share of those that have begun.

    Args:
        tasks: the tasks.
        jobs: number of tasks at once; of one at a time, the training shows its own progress instead of the bar.
        shown: show anything.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int, shown: bool) -> None:
        self.tasks, self.shown = tasks, shown
        self.ended: set[str] = set()
        self.began = time.monotonic()
        self.bar = ProgressBar("sweep", float(len(tasks)), shown and jobs > 1 and can_draw())

    def __enter__(self) -> SweepProgress:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)

    def end(self, task: Task, line: str | None) -> None:
        """Shows that a task has ended; ``line`` says why it failed."""
        self.ended.add(task.name)
        done, total, seconds = len(self.ended), len(self.tasks), time.monotonic() - self.began
        left = "" if done == total else f"; about {duration(seconds / done * (total - done))} left"
        text = f"[{done}/{total}] {task.name}: {'done' if line is None else f'failed: {line}'}{left}"
        if self.shown and self.bar.drawn:
            self.bar.message(text)
        elif self.shown:
            print_message(text)

    def update(self) -> None:
        """Moves the bar."""
        if not self.bar.drawn:
            return
        shares = [
            trained_share(task.folder, task.epochs) for task in self.tasks if task.name not in self.ended
        ]
        begun = [share for share in shares if share]
        self.bar.update(done=len(self.ended) + sum(begun), text=f"{len(begun)} runs begun")


def trained_share(folder: Path, epochs: float) -> float:
    """Returns the completed share of a run's training, from 0 to 1, by the last line of its metrics."""
    try:
        with RunDirectory(folder).metrics_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_BYTES))
            lines = file.read().splitlines()
        return float(min(1.0, json.loads(lines[-1])["epoch"] / epochs))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        # Not begun, or a line that is being written.
        return 0.0
