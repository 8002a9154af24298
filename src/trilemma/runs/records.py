"""Writes evaluation results into a run folder: atomically, and without overwriting the result of other settings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trilemma.files import write_text

# Keys that identify a measurement: a new row replaces an older one only if all of these values are equal.
IDENTITY = ("protocol", "version", "count", "data", "threat", "seed", "checkpoint")

# Subfolder of ``evaluation`` with the rows of the last classifier; the rows of the best are in ``evaluation`` itself.
LAST = "last"


def warn_unwritable(path: Path, error: OSError) -> None:
    """Prints a one-line warning to standard error that a result could not be written to ``path``."""
    print(
        f"warning: {path}: cannot be written ({error.strerror or error}); the result is shown but not saved",
        file=sys.stderr,
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes ``content`` as JSON; prints a warning if the file cannot be written."""
    try:
        write_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        warn_unwritable(path, error)


def write_row(run: Path, row: dict[str, Any], subfolder: str = "") -> None:
    """Writes a result row to ``evaluation/PROTOCOL.json`` of a run; prints a warning if that fails.

    An existing row with other settings is moved to the folder ``earlier`` beside it. Characters that are not valid in
    file names, such as the colon of ``ood:SET``, are replaced by hyphens.

    Args:
        run: the run folder.
        row: the result row.
        subfolder: subfolder of ``evaluation`` to write to.
    """
    path = run / "evaluation" / subfolder / (re.sub(r"[^\w.@+-]+", "-", row["protocol"]) + ".json")
    try:
        existing = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if existing is not None and any(existing.get(key) != row[key] for key in IDENTITY):
            earlier = path.parent / "earlier"
            earlier.mkdir(exist_ok=True)
            count = sum(1 for _ in earlier.glob(f"{path.stem}-*.json"))
            path.replace(earlier / f"{path.stem}-{count + 1}.json")
        write_text(path, json.dumps(row, indent=2) + "\n")
    except OSError as error:
        warn_unwritable(path, error)


def checkpoint_name(about: Mapping[str, Any]) -> str | None:
    """Returns a text such as ``best, epoch 40`` from a row's ``checkpoint``; ``None`` if no run made the classifier."""
    if "checkpoint" not in about:
        return None
    epoch = about.get("epoch")
    return str(about["checkpoint"]) + ("" if epoch is None else f", epoch {epoch:g}")
