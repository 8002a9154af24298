"""The page about the lint names every finding and promises no other."""

from __future__ import annotations

import re
from pathlib import Path

from trilemma.evaluation.lint.catalogue import CATALOGUE

PAGE = Path(__file__).parents[2] / "docs" / "lint.md"


def test_every_finding_has_a_row():
    rows = re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(CATALOGUE)
