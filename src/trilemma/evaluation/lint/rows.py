"""The lint in result rows: what was found on their images, and rows that contradict each other."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.run import LOOKED_AT, Lint, inspect
from trilemma.threat import Threat

Row = dict[str, Any]

SCREEN, STANDARD = "screen", "autoattack-standard"
SAME = ("count", "data", "threat", "checkpoint")
# Above the distance measured on honest classifiers, and no mere handful of images.
FAR, AT_LEAST = 0.03, 4


def lint_data(
    clf: Classifier, data: ImageSet, threat: Threat | None, seed: int, batch_size: int = 250
) -> Lint:
    """:func:`trilemma.evaluation.lint.inspect` on the first images of a fixed stratified order."""
    part = data.first(LOOKED_AT)
    return inspect(clf, part.float_images(), part.labels, threat, seed=seed, batch_size=batch_size)


def print_findings(findings: Iterable[Finding]) -> None:
    """Prints one line per finding on standard error."""
    for finding in findings:
        print(f"lint: {finding}", file=sys.stderr, flush=True)


def add_lint(rows: Mapping[str, Row], found: Lint | None) -> None:
    """Writes into every row, as ``lint``, what was found; ``None`` means that nobody looked."""
    between = [] if found is None else row_findings(rows)
    print_findings(between)
    for row in rows.values():
        row["lint"] = None if found is None else found.record()
        for finding in between:
            row["lint"]["findings"].append(finding.record())


def row_findings(rows: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """``screen`` and ``autoattack-standard`` of the same images and threat, where they are far apart."""
    if SCREEN not in rows or STANDARD not in rows:
        return []
    screen, standard = rows[SCREEN], rows[STANDARD]
    if any(screen[key] != standard[key] for key in SAME):
        return []
    apart = screen["value"] - standard["value"]
    images = round(abs(apart) * screen["count"])
    if abs(apart) < FAR or images < AT_LEAST:
        return []
    seen = f"screen says {screen['value']:.1%}, autoattack-standard {standard['value']:.1%}"
    return [Finding.known("screen-far-from-autoattack", seen, images, screen["count"])]


def findings_of(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Finding], int, bool]:
    """Of rows that may have been made at several times: each finding once, the images looked at, and whether all were.

    Returns:
        Findings by name, the largest number of images, and whether every row was linted.
    """
    records = [row.get("lint") for row in rows]
    found = {
        record["name"]: Finding.read(record)
        for linted in records
        if linted is not None
        for record in linted["findings"]
    }
    images = max((linted["images"] for linted in records if linted is not None), default=0)
    return list(found.values()), images, None not in records
