"""The run that ``trilemma.train`` returns: its folder, its classifier and its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from trilemma.classifier.classifier import Classifier
from trilemma.errors import UserError
from trilemma.runs.read import read_contents
from trilemma.runs.run_directory import RunDirectory, warn_once
from trilemma.tables import Rows, html_table, text_table


@dataclass(frozen=True, repr=False)
class Run:
    """A run that has ended; where a run folder is expected, the run itself can be passed.

    Attributes:
        path: the run folder.
        classifier: the best finished classifier.
        metrics: lines of ``metrics.jsonl``.
    """

    path: Path
    classifier: Classifier
    metrics: list[dict[str, Any]]

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def rows(self) -> Rows:
        """The result rows of the best checkpoint that the run folder holds, by protocol name."""
        contents = read_contents(self.path)
        return Rows({**contents.rows, **contents.measures})

    def __repr__(self) -> str:
        table = self._table()
        return "\n".join([*self._lines(), *([text_table(table)] if table else [])])

    def _repr_html_(self) -> str:
        return "<br>".join(map(escape, self._lines())) + html_table(self._table())

    def _table(self) -> list[dict[str, str]]:
        """The rows as texts; none if the folder was moved or is damaged, so that a run can always be printed."""
        try:
            return self.rows.summary() if RunDirectory(self.path).exists() else []
        except UserError as error:
            warn_once(str(error))
            return []

    def _lines(self) -> list[str]:
        """Recipe, state and cost, held-out accuracies, and alarms, as lines of text."""
        run = RunDirectory(self.path)
        summary, recipe = run.summary(), run.environment().get("recipe")
        state = [recipe, summary["status"]]
        if summary["epochs"] is not None:
            state.append(f"{summary['epochs']:g} epochs")
        if summary["minutes"] is not None:
            state.append(f"{summary['minutes']:.1f} min")
        lines = [f"Run {self.path}: {', '.join(text for text in state if text) or 'no such folder'}"]
        if summary["held_out_clean"] is not None:
            accuracies = {"clean": summary["held_out_clean"], "PGD-10": summary["held_out_pgd10"]}
            texts = [f"{name} {100 * value:.1f} %" for name, value in accuracies.items() if value is not None]
            lines.append(f"held-out accuracy (epoch {summary['best_epoch']:g}): {', '.join(texts)}")
        alarms = dict.fromkeys(event.get("name", "") for event in run.events() if event["kind"] == "alarm")
        return [*lines, f"alarms: {', '.join(alarms)}"] if alarms else lines
