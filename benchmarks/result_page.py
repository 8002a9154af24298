"""The numbers of a benchmark and the page that shows them: measured row by row, read by a person, kept between runs."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trilemma import __version__

# What a person wrote below it outlives every run.
_READING = "\n## Reading\n"

Rows = dict[str, Any]


def write(results: Path, command: str, rows: Rows, page: Callable[[Rows], str], about: str = "") -> Rows:
    """Adds ``rows`` to those of ``results``, a JSON file, and writes the page beside it; returns all rows.

    Args:
        command: what was typed, as the page shows it.
        page: from everything that the JSON file holds (``command``, ``about``, ``rows``) to Markdown.
        about: the machine's particulars, behind the versions.
    """
    before: Rows = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.is_file() else {}
    versions = f"trilemma {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    content = {
        "command": command,
        "about": ", ".join(part for part in (versions, platform.machine(), about) if part) + ".",
        "rows": before | rows,
    }
    results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    markdown = results.with_suffix(".md")
    _, mark, reading = (markdown.read_text(encoding="utf-8") if markdown.is_file() else "").partition(
        _READING
    )
    markdown.write_text(page(content) + mark + reading, encoding="utf-8")
    return before | rows
