"""Result pages: rows are added to those of before, and what a person wrote below the tables stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.result_page import write


def page(content: dict[str, Any]) -> str:
    return f"# Cost\n\n`{content['command']}`\n\n" + "".join(f"- {name}\n" for name in content["rows"])


def test_rows_are_added_and_the_reading_stays(tmp_path: Path) -> None:
    results = tmp_path / "cost.json"
    assert write(results, "python cost.py", {"one": {"seconds": 3}}, page, "2 threads") == {
        "one": {"seconds": 3}
    }
    markdown = results.with_suffix(".md")
    markdown.write_text(markdown.read_text() + "\n## Reading\n\nDear.\n")
    rows = write(results, "python cost.py --again", {"two": {"seconds": 4}, "one": {"seconds": 2}}, page)
    assert rows == {"one": {"seconds": 2}, "two": {"seconds": 4}} == json.loads(results.read_text())["rows"]
    assert markdown.read_text() == (
        "# Cost\n\n`python cost.py --again`\n\n- one\n- two\n\n## Reading\n\nDear.\n"
    )
    assert json.loads(results.read_text())["about"].startswith("trilemma ")
