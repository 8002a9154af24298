"""The findings of the lint at the top of a page, or one line that there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.rows import findings_of, row_findings, rows_findings
from trilemma.runs.read import Contents


@dataclass(frozen=True)
class LintResult:
    """Lint findings of a run.

    Attributes:
        findings: each finding once, errors first.
        line: summary in one sentence; empty if nothing was evaluated.
    """

    findings: list[Finding]
    line: str


def lint_result(run: Contents) -> LintResult:
    """Returns the findings of all result rows of a run, including contradictions between rows."""
    rows = [*run.rows.values(), *run.measures.values(), *run.last.values()]
    linted = [row for row in rows if "lint" in row]
    findings, images, complete = findings_of(linted)
    known = {finding.name for finding in findings}
    about_rows = [
        *row_findings(run.rows),
        *rows_findings([*run.rows.values(), *run.last.values(), *run.others]),
    ]
    findings += [finding for finding in about_rows if finding.name not in known]
    findings.sort(key=lambda finding: finding.severity != "error")
    if not rows:
        return LintResult([], "")
    if not images:
        line = "These results were computed without the lint."
    elif findings:
        line = f"On {images} images the lint found problems that may invalidate the results below."
    else:
        line = f"The lint checked {images} images and found nothing."
    if images and not (complete and len(linted) == len(rows)):
        line += " Some results were computed without the lint."
    return LintResult(findings, line)


def lint_lines(names: Sequence[str], runs: Sequence[Contents]) -> list[str]:
    """Returns one line per run with findings, for a page about several runs; if none has any, the runs' summaries."""
    results = [(name, lint_result(run)) for name, run in zip(names, runs, strict=True)]
    lines = [
        f"{name}: the lint found {', '.join(finding.name for finding in result.findings)}; see the report of this run."
        for name, result in results
        if result.findings
    ]
    if lines:
        return lines
    names_by_line: dict[str, list[str]] = {}
    for name, result in results:
        if result.line:
            names_by_line.setdefault(result.line, []).append(name)
    return [f"{', '.join(same)}: {line}" for line, same in names_by_line.items()]
