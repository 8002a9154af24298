"""What stands on top of a page: the findings of the lint, or one line that there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.rows import findings_of, row_findings
from trilemma.runs.read import Contents


@dataclass(frozen=True)
class Suspicions:
    """Findings of every row, once each, errors first, and one line for the reader.

    Attributes:
        line: empty where nothing was evaluated.
    """

    findings: list[Finding]
    line: str


def suspicions(run: Contents) -> Suspicions:
    """Of all rows of a run, and of rows that contradict each other."""
    rows = [*run.rows.values(), *run.measures.values(), *run.last.values()]
    linted = [row for row in rows if "lint" in row]
    found, images, whole = findings_of(linted)
    known = {finding.name for finding in found}
    found += [finding for finding in row_findings(run.rows) if finding.name not in known]
    found.sort(key=lambda finding: finding.severity != "error")
    if not rows:
        return Suspicions([], "")
    if not images:
        line = "Nobody looked for mistakes: these results were made without the lint."
    elif found:
        line = f"On {images} images the lint found what may make the results below worth less than they seem."
    else:
        line = f"The lint looked at {images} images and found nothing."
    if images and not (whole and len(linted) == len(rows)):
        line += " Some results were made without it."
    return Suspicions(found, line)


def lint_lines(names: Sequence[str], runs: Sequence[Contents]) -> list[str]:
    """For a page about several runs: who has findings, or that nobody has."""
    seen = [(name, suspicions(run)) for name, run in zip(names, runs, strict=True)]
    lines = [
        f"{name}: the lint found {', '.join(finding.name for finding in found.findings)}; its own report says more."
        for name, found in seen
        if found.findings
    ]
    return lines or [f"{name}: {found.line}" for name, found in seen if found.line]
