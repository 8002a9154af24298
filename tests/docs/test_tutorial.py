"""The tutorial notebook runs, in a real kernel where the packages are installed, and its outputs are clean."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
HAS_KERNEL = find_spec("nbclient") is not None and find_spec("ipykernel") is not None


def cells() -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return content


def test_the_notebook_is_committed_without_outputs() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert 8 <= len(code) <= 15
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.skipif(HAS_KERNEL, reason="the test with a kernel runs the same cells")
def test_the_cells_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells()):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"tutorial, cell {number}", "exec"), names)
    assert Path("runs/robust/report.html").is_file() and Path("runs/compare.html").is_file()
    assert names["rows"]["pgd-20"]["value"] > 0.2
    assert "attacked" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not HAS_KERNEL, reason="nbclient and ipykernel are not installed")
@pytest.mark.filterwarnings("default")
def test_the_cells_run_in_a_kernel_with_clean_outputs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    streams = [output["text"] for output in outputs if output["output_type"] == "stream"]
    assert not any(output["output_type"] == "error" for output in outputs)
    # No control sequences of a terminal, and none of the lines that a log file would get.
    assert not any("\x1b" in text or "\r" in text or "img/s" in text for text in streams)
    html = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("<progress" in text for text in html) == 2
    assert sum("<table>" in text for text in html) >= 4
    assert sum("image/png" in data for data in shown) == 2
    assert not any(re.search(r"<\w+ object at 0x", data.get("text/plain", "")) for data in shown)
