"""The lint in result rows: findings on their images, and rows that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.defences.purification import ADAPTIVE
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.run import MAX_IMAGES, Lint, inspect
from trilemma.evaluation.published import implausible
from trilemma.metrics.accuracy import wilson_interval
from trilemma.printing import print_message
from trilemma.threat import Threat
from trilemma.units import parse_fraction

Row = dict[str, Any]

SCREEN, STANDARD = "screen", "autoattack-standard"
# Names of rows under PGD, with their number of steps.
PGD = re.compile(r"pgd-\d+(-\d+)?|attack:pgd")
# Difference between PGD and AutoAttack that is a finding, and the largest one of public runs whose gradients are not
# masked (PGD-10, 180 of 186 runs), which the 95 % interval must exclude.
MASKED, NOT_MASKED = 0.10, 0.086
# Keys on which two rows must agree to be compared.
SAME = ("count", "data", "threat", "checkpoint")
# Keys on which the rows of one curve agree, besides the norm.
SAME_CURVE = ("protocol", "version", "count", "data", "seed", "checkpoint")
# Settings that purified rows of one defence share.
PURIFICATION = ("steps", "step_size", "noise_std")
# Smallest rise of a curve in images that is a finding; random starts change single verdicts.
MIN_RISE = 2
# Smallest difference that is a finding, as a share and in images: above what sound classifiers show.
MIN_DIFFERENCE, MIN_IMAGES = 0.03, 4


def lint_data(
    clf: Classifier, data: ImageSet, threat: Threat | None, seed: int, batch_size: int = 250
) -> Lint:
    """:func:`trilemma.evaluation.lint.inspect` on the first images of ``data`` in a fixed stratified order."""
    part = data.first(MAX_IMAGES)
    return inspect(clf, part.float_images(), part.labels, threat, seed=seed, batch_size=batch_size)


def print_findings(findings: Iterable[Finding]) -> None:
    """Prints one line per finding on standard error."""
    for finding in findings:
        print_message(f"lint: {finding}")


def add_lint(rows: Mapping[str, Row], result: Lint | None) -> None:
    """Sets ``lint`` of every row to the record of ``result``, with findings about the rows; ``None`` without lint."""
    about_rows = [] if result is None else [*_each_threat(rows), *rows_findings(rows.values())]
    print_findings(about_rows)
    for row in rows.values():
        row["lint"] = None if result is None else result.record()
        for finding in about_rows:
            row["lint"]["findings"].append(finding.record())


def _each_threat(rows: Mapping[str, Row]) -> list[Finding]:
    """:func:`row_findings` of the rows of each threat, each name once."""
    by_threat: dict[str, dict[str, Row]] = {}
    for name, row in rows.items():
        # With several radii, the name is followed by the radius.
        by_threat.setdefault(str(row["threat"]), {})[row.get("protocol", name)] = row
    without_attack = by_threat.pop("None", {})
    groups = [without_attack | group for group in by_threat.values()] or [without_attack]
    found = (finding for group in groups for finding in row_findings(group))
    return list({finding.name: finding for finding in found}.values())


def rows_findings(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Findings about rows of any names and threats: curves that rise, purified rows without an attack through it."""
    measured = list(rows)
    return [*curve_findings(measured), *purification_findings(measured)]


def purification_findings(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """A finding if a row of purified images has an attack that ignores the purifier, or no attack through it at all.

    Rows belong together if the steps of the purification and the classifier are the same.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        purification = row.get("purification")
        if purification and purification["steps"]:
            same = [row.get("checkpoint"), *(purification.get(key) for key in PURIFICATION)]
            groups.setdefault(str(same), []).append(row)
    for group in groups.values():
        adaptive = [row for row in group if row["purification"].get("attack") == ADAPTIVE]
        wrong = [row for row in group if row["threat"] is not None and row not in adaptive]
        if wrong or not adaptive:
            row = (wrong or group)[0]
            attack = (
                "an attack that ignores the purifier" if wrong else "no attack through the purifier beside it"
            )
            observation = f"{row['protocol']} gives {row['value']:.1%}, with {attack}"
            return [Finding.from_catalogue("purified-not-attacked", observation, 0, 0)]
    return []


def curve_findings(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """A finding if the accuracy under an attack rises with the radius by some images; else empty."""
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["threat"] is not None and row.get("quantity", "accuracy") == "accuracy":
            same = [row["threat"]["norm"], *(row.get(key) for key in SAME_CURVE)]
            curves.setdefault(str(same), []).append(row)
    rises = []
    for curve in curves.values():
        ordered = sorted(curve, key=lambda row: parse_fraction(row["threat"]["radius"]))
        rises += [
            (round((after["value"] - before["value"]) * after["count"]), before, after)
            for before, after in pairwise(ordered)
        ]
    images, before, after = max(rises, key=lambda rise: rise[0], default=(0, {}, {}))
    if images < MIN_RISE:
        return []
    norm, (low, high) = after["threat"]["norm"], (row["threat"]["radius"] for row in (before, after))
    values = f"{before['value']:.1%} at {norm} {low} and {after['value']:.1%} at {high}"
    observation = f"{after.get('protocol')} gives {values}"
    return [Finding.from_catalogue("rising-curve", observation, images, after["count"])]


def row_findings(rows: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Findings about rows: ``screen`` or PGD far from AutoAttack, or a result beyond all published ones."""
    findings = [*_screen_findings(rows), *_pgd_findings(rows)]
    if STANDARD in rows and (observation := implausible(rows[STANDARD])) is not None:
        findings.append(Finding.from_catalogue("implausible", observation, 0, 0))
    return findings


def _screen_findings(rows: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """A finding if ``screen`` and ``autoattack-standard`` on the same images and threat differ much; else empty."""
    if SCREEN not in rows or STANDARD not in rows:
        return []
    screen, standard = rows[SCREEN], rows[STANDARD]
    if any(screen[key] != standard[key] for key in SAME):
        return []
    difference = screen["value"] - standard["value"]
    images = round(abs(difference) * screen["count"])
    if abs(difference) < MIN_DIFFERENCE or images < MIN_IMAGES:
        return []
    observation = f"screen gives {screen['value']:.1%}, autoattack-standard {standard['value']:.1%}"
    return [Finding.from_catalogue("screen-far-from-autoattack", observation, images, screen["count"])]


def _pgd_findings(rows: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """A finding if AutoAttack breaks many images that no attack by PGD on the same images breaks; else empty."""
    if STANDARD not in rows:
        return []
    standard = rows[STANDARD]
    same = {
        name: row["value"]
        for name, row in rows.items()
        if PGD.fullmatch(name) and all(row[key] == standard[key] for key in SAME)
    }
    if not same:
        return []
    strongest, count = min(same, key=lambda name: same[name]), standard["count"]
    images = round((same[strongest] - standard["value"]) * count)
    if images <= MASKED * count or wilson_interval(images, count)[0] <= NOT_MASKED:
        return []
    observation = f"{strongest} gives {same[strongest]:.1%}, {STANDARD} {standard['value']:.1%}"
    return [Finding.from_catalogue("pgd-far-from-autoattack", observation, images, count)]


def findings_of(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Finding], int, bool]:
    """Collects the findings of rows, which may come from several evaluations.

    Returns:
        The findings, one per name; the largest number of images checked; and whether every row has a lint record.
    """
    records = [row.get("lint") for row in rows]
    findings = {
        finding["name"]: Finding.from_record(finding)
        for record in records
        if record is not None
        for finding in record["findings"]
    }
    images = max((record["images"] for record in records if record is not None), default=0)
    return list(findings.values()), images, None not in records
