"""Result rows that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebat.evaluation.lint.finding import Finding

Row = Mapping[str, Any]

SCREEN, STANDARD = "screen", "autoattack-standard"
SAME = ("count", "data", "threat", "checkpoint")
# Above the distance measured on honest classifiers, and no mere handful of images.
FAR, AT_LEAST = 0.03, 4


def row_findings(rows: Mapping[str, Row]) -> list[Finding]:
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
