"""The published results beside a run's own, for its report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from trilemma.evaluation.published import Published, published_rows, source
from trilemma.runs.read import Contents

# The protocol that the leaderboards are measured by.
STANDARD = "autoattack-standard"


@dataclass(frozen=True)
class Beside:
    """A row of AutoAttack and published results of networks of a similar size, under the same threat.

    Attributes:
        row: the row.
        clean: accuracy on the same images without attack.
        entries: the published results, the most robust first.
        source: where they come from.
    """

    row: dict[str, Any]
    clean: float
    entries: list[Published]
    source: str


def published_beside(run: Contents) -> Beside | None:
    """Returns the published results beside the run's own; ``None`` without AutoAttack on official test images."""
    row = run.rows.get(STANDARD)
    if row is None or row["data"].get("split") != "test":
        return None
    entries = published_rows(row["data"]["name"], row["threat"], row.get("parameters"))
    if not entries:
        return None
    # A page holds no addresses.
    origin = re.sub(r" \(http[^)]*\)", "", source())
    return Beside(row, row["facts"]["attacked"] / row["count"], entries, origin)
