"""What stands on top of a page: the findings of the lint, or one line that there are none."""

from __future__ import annotations

from dataclasses import dataclass

from ebat.evaluation.lint.finding import Finding
from ebat.evaluation.lint.rows import findings_of, row_findings
from ebat.report.contents import Contents


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
    linted = [row for row in (*run.rows.values(), *run.measures.values()) if "lint" in row]
    found, images, whole = findings_of(linted)
    known = {finding.name for finding in found}
    found += [finding for finding in row_findings(run.rows) if finding.name not in known]
    found.sort(key=lambda finding: finding.severity != "error")
    if not run.rows and not run.measures:
        return Suspicions([], "")
    if not images:
        line = "Nobody looked for mistakes: these results were made without the lint."
    elif found:
        line = f"On {images} images the lint found what may make the results below worth less than they seem."
    else:
        line = f"The lint looked at {images} images and found nothing."
    if images and not (whole and len(linted) == len(run.rows) + len(run.measures)):
        line += " Some results were made without it."
    return Suspicions(found, line)
