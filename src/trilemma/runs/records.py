"""What evaluation writes into a run folder: atomically, and never over another result."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from trilemma.files import write_text

# A row with the same values here measures the same thing and replaces the older one.
IDENTITY = ("protocol", "version", "count", "data", "threat", "seed", "checkpoint")

# Where in the evaluation folder the rows of the last classifier lie, beside those of the best.
LAST = "last"


def warn_unwritable(path: Path, error: OSError) -> None:
    """One line on standard error; the result itself still reaches the caller."""
    print(
        f"warning: {path}: cannot be written ({error.strerror or error}); the result is only shown",
        file=sys.stderr,
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes ``content``; a folder that cannot be written is a warning."""
    try:
        write_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        warn_unwritable(path, error)


def write_row(run: Path, row: dict[str, Any], part: str = "") -> None:
    """``evaluation/PROTOCOL.json`` of a run; an older row of other settings moves to ``earlier`` beside it.

    What a file name cannot hold, such as the colon of ``ood:SET``, is a hyphen there.

    Args:
        part: a folder in ``evaluation`` to write to instead.
    """
    path = run / "evaluation" / part / (re.sub(r"[^\w.@+-]+", "-", row["protocol"]) + ".json")
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if before is not None and any(before.get(key) != row[key] for key in IDENTITY):
            earlier = path.parent / "earlier"
            earlier.mkdir(exist_ok=True)
            count = sum(1 for _ in earlier.glob(f"{path.stem}-*.json"))
            path.replace(earlier / f"{path.stem}-{count + 1}.json")
        write_text(path, json.dumps(row, indent=2) + "\n")
    except OSError as error:
        warn_unwritable(path, error)


def checkpoint_name(about: Mapping[str, Any]) -> str | None:
    """``best, epoch 40``, from a row's ``checkpoint``; ``None`` for a classifier that came from no run."""
    if "checkpoint" not in about:
        return None
    epoch = about.get("epoch")
    return str(about["checkpoint"]) + ("" if epoch is None else f", epoch {epoch:g}")
