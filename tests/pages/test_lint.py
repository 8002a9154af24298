"""The findings of the lint stand on top of a report, before any figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilemma.evaluation.evaluate import evaluate_run
from trilemma.evaluation.lint import Finding
from trilemma.evaluation.lint.run import Lint
from trilemma.pages.comparison import write_comparison
from trilemma.pages.html import write_report
from trilemma.runs.records import read_record, write_json


@pytest.fixture
def run_copy(run_copy: Path) -> Path:
    """A run that has no curve to draw."""
    (run_copy / "metrics.jsonl").unlink()
    return run_copy


def compared(run: Path) -> str:
    return write_comparison([run], run.parent / "compare.html").read_text(encoding="utf-8")


def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_nothing_found_is_one_line_and_nothing_evaluated_is_none(run_copy):
    assert "lint" not in page(run_copy).split("</header>")[0].split("<header>")[1].lower()
    evaluate_run(run_copy, ["clean"], images=20)
    assert "The lint checked 20 images and found nothing." in page(run_copy)
    assert "pgd-at: The lint checked 20 images and found nothing." in compared(run_copy)
    evaluate_run(run_copy, ["pgd-20"], images=20, lint=False)
    assert "Some results were computed without the lint." in page(run_copy)
    evaluate_run(run_copy, ["clean"], images=20, lint=False)
    assert "These results were computed without the lint" in page(run_copy)


def test_findings_stand_in_the_header_errors_first_and_are_escaped(run_copy):
    evaluate_run(run_copy, ["clean"], images=20)
    file = run_copy / "evaluation" / "clean.json"
    row = read_record(file)
    found = [
        Finding.from_catalogue("train-mode", "1 <b>Dropout</b>", 20, 20),
        Finding.from_catalogue("softmax-outputs", "outputs sum to 1", 20, 20),
    ]
    row["lint"] = Lint(found, images=20).record()
    write_json(file, row)
    header = page(run_copy).split("</header>")[0]
    assert "On 20 images the lint found" in header
    assert header.index("softmax-outputs") < header.index("train-mode")
    assert "error, 20 of 20 images" in header
    assert "Return logits: remove the last softmax." in header
    assert "1 &lt;b&gt;Dropout" in header
    assert "pgd-at: the lint found softmax-outputs, train-mode; see the report of this run." in compared(
        run_copy
    )
