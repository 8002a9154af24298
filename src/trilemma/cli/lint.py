"""The lint on the command line: what it found, before the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from trilemma.cli.common import tell

NoLint = Annotated[
    bool, typer.Option("--no-lint", help="do not look for mistakes of the classifier and its images first")
]


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """``"lint: nothing found on 397 images"``, or how much was found."""
    from trilemma.evaluation.lint.rows import findings_of

    found, images, whole = findings_of(rows)
    if not whole and not images:
        return "lint: not run"
    if not found:
        return f"lint: nothing found on {images} images"
    return f"lint: on {images} images, {', '.join(finding.name for finding in found)} (told above)"


def print_findings(record: Mapping[str, Any]) -> None:
    """On standard output: what the lint found, and what to do; or one line that it found nothing."""
    from trilemma.evaluation.lint.rows import findings_of

    found, _, _ = findings_of([record])
    if not found:
        print(summary([record]))
    for finding in found:
        print(f"lint: {finding}")


def tell_summary(rows: Iterable[Mapping[str, Any]], quiet: bool) -> None:
    """The summary on standard error; the findings themselves were told when they were made."""
    tell(summary(rows), quiet)
